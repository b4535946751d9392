//! How long a certificate is good for.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::Decode as _;
use x509_cert::time::Time;

use super::finding::Level;

/// A certificate that ends within this time should have been renewed: those that live for 90 days are, at 30.
const SOON: Duration = Duration::from_hours(14 * 24);

/// What is said of a certificate's time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Life {
    pub(super) level: Level,
    /// As it stands after "the certificate".
    pub(super) said: String,
}

/// Whether it is good now, and for how long.
pub(super) fn life(certificate: &CertificateDer<'_>, now: SystemTime) -> Life {
    let Ok(parsed) = Certificate::from_der(certificate) else {
        return Life { level: Level::Warning, said: "is not one that can be read (X.509)".to_owned() };
    };
    let validity = parsed.tbs_certificate().validity();
    let since_1970 = |time: Time| UNIX_EPOCH + time.to_unix_duration();
    let (begins, ends) = (since_1970(validity.not_before), since_1970(validity.not_after));
    let at = |time: SystemTime| {
        Timestamp::try_from(time)
            .map_or_else(|_| "an unknown time".to_owned(), |time| time.strftime("%F %R UTC").to_string())
    };
    if now < begins {
        return Life { level: Level::Error, said: format!("is not valid before {}", at(begins)) };
    }
    match ends.duration_since(now) {
        Err(_) => Life { level: Level::Error, said: format!("has expired on {}", at(ends)) },
        Ok(left) if left < SOON => {
            let left = match left.as_secs() / 86_400 {
                0 => format!("in {} hours", left.as_secs() / 3600),
                1 => "in a day".to_owned(),
                days => format!("in {days} days"),
            };
            Life { level: Level::Warning, said: format!("expires {left}, on {}", at(ends)) }
        }
        Ok(_) => Life { level: Level::Ok, said: format!("is good until {}", at(ends)) },
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    #[test]
    fn a_life_has_four_parts() {
        let mut params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(2030, 1, 1), date_time_ymd(2030, 3, 1));
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let at = |text: &str| life(certificate.der(), text.parse::<Timestamp>().unwrap().into());
        for (now, level, said) in [
            ("2029-12-31T23:59:59Z", Level::Error, "is not valid before 2030-01-01 00:00 UTC"),
            ("2030-01-01T00:00:01Z", Level::Ok, "is good until 2030-03-01 00:00 UTC"),
            ("2030-02-20T00:00:00Z", Level::Warning, "expires in 9 days, on 2030-03-01 00:00 UTC"),
            ("2030-02-27T12:00:00Z", Level::Warning, "expires in a day, on 2030-03-01 00:00 UTC"),
            ("2030-02-28T21:00:00Z", Level::Warning, "expires in 3 hours, on 2030-03-01 00:00 UTC"),
            ("2030-03-01T00:00:01Z", Level::Error, "has expired on 2030-03-01 00:00 UTC"),
        ] {
            assert_eq!(at(now), Life { level, said: said.to_owned() }, "{now}");
        }
        let nonsense = CertificateDer::from(vec![1, 2, 3]);
        assert_eq!(life(&nonsense, SystemTime::UNIX_EPOCH).level, Level::Warning);
    }
}
