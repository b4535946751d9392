//! One value of the file, of whatever type it was written in.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

use super::error::Fault;
use super::file::ScrubTable;

/// One value as written. From the environment everything is text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scalar {
    Text(String),
    Integer(i64),
    Bool(bool),
}

/// `scrub = false`, or `{ … }`
#[derive(Debug, Clone)]
pub(super) enum ScrubValue {
    /// Off, or what does not fit.
    Scalar(Scalar),
    /// How.
    Table(ScrubTable),
}

// === impl Scalar ===

impl Scalar {
    /// The value as text, for parsers of values with a unit or a grammar.
    pub(super) fn text(&self, want: &'static str) -> Result<&str, Fault> {
        match self {
            Self::Text(text) => Ok(text),
            other => Err(Fault::Type { got: other.to_string(), want }),
        }
    }
}

impl Serialize for ScrubValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Scalar(scalar) => scalar.serialize(serializer),
            Self::Table(table) => table.serialize(serializer),
        }
    }
}

// By hand: through an untagged enum nobody would notice a key that does not exist.
impl<'de> Deserialize<'de> for ScrubValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = ScrubValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("false, or a table with rate, every and hours")
            }

            fn visit_bool<E>(self, value: bool) -> Result<ScrubValue, E> {
                Ok(ScrubValue::Scalar(Scalar::Bool(value)))
            }

            fn visit_str<E>(self, text: &str) -> Result<ScrubValue, E> {
                Ok(ScrubValue::Scalar(Scalar::Text(text.to_owned())))
            }

            fn visit_i64<E>(self, number: i64) -> Result<ScrubValue, E> {
                Ok(ScrubValue::Scalar(Scalar::Integer(number)))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<ScrubValue, A::Error> {
                ScrubTable::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(ScrubValue::Table)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Integer(number) => number.fmt(f),
            Self::Bool(value) => value.fmt(f),
        }
    }
}

impl From<String> for Scalar {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl Serialize for Scalar {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => serializer.serialize_str(text),
            Self::Integer(number) => serializer.serialize_i64(*number),
            Self::Bool(value) => serializer.serialize_bool(*value),
        }
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text in quotes, a whole number, true or false")
            }

            fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(text.to_owned()))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Scalar, E> {
                Ok(Scalar::Integer(number))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar::Bool(value))
            }
        }
        deserializer.deserialize_any(Any)
    }
}
