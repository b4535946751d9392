//! Forms and queries: `a=b&c=d`, percent-encoded.
#![warn(clippy::indexing_slicing)]

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// Most fields of a form.
const MAX_FIELDS: usize = 256;

/// The fields of a form, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Form(Vec<(String, String)>);

/// What is no form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidForm {
    /// Not UTF-8 once it is decoded.
    #[error("a field is not UTF-8")]
    Text,
    /// More fields than any client sends.
    #[error("there are more than {MAX_FIELDS} fields")]
    TooMany,
}

// === impl Form ===

impl Form {
    /// The fields of a query, or of a body of type `application/x-www-form-urlencoded`.
    pub(super) fn parse(text: &str) -> Result<Self, InvalidForm> {
        let mut fields = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            if fields.len() >= MAX_FIELDS {
                return Err(InvalidForm::TooMany);
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            fields.push((decoded(name)?, decoded(value)?));
        }
        Ok(Self(fields))
    }

    /// The first value of a field; empty ones are as good as none.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, value)| known == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    /// All values of a field.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// All fields.
    pub(super) fn into_fields(self) -> Vec<(String, String)> {
        self.0
    }
}

fn decoded(text: &str) -> Result<String, InvalidForm> {
    let spaced = if text.contains('+') { Cow::Owned(text.replace('+', " ")) } else { Cow::Borrowed(text) };
    percent_decode_str(&spaced).decode_utf8().map(Cow::into_owned).map_err(|_| InvalidForm::Text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn forms_of_clients() {
        let form = Form::parse("service=r&scope=a%3Ab+c&scope=d%20e&empty=&flag&&password=p%2Bw%26%C3%A9").unwrap();
        assert_eq!(form.get("service"), Some("r"));
        assert_eq!(form.all("scope").collect::<Vec<_>>(), ["a:b c", "d e"]);
        assert_eq!(form.get("password"), Some("p+w&é"));
        assert_eq!((form.get("empty"), form.get("flag"), form.get("none")), (None, None, None));
        assert_eq!(Form::parse("a=%ff"), Err(InvalidForm::Text));
        assert_eq!(Form::parse(&"a=b&".repeat(MAX_FIELDS + 1)), Err(InvalidForm::TooMany));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-z%+=&0-9éA-F]{0,60}") {
            if let Ok(form) = Form::parse(&text) {
                prop_assert!(form.into_fields().len() <= MAX_FIELDS);
            }
        }
    }
}
