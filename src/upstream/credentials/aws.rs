//! The keys of an AWS account: from files, the environment, or where AWS's own tools keep them.

use std::path::PathBuf;

use super::{CredentialFault, MAX_SECRET, Secret, is_not_found, read_file, read_secret};
use crate::config::AwsKeys;

/// The profile that is meant where none is named.
const DEFAULT_PROFILE: &str = "default";

/// What requests are signed with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Keys {
    pub(super) id: String,
    pub(super) secret: Secret,
    /// Of temporary keys.
    pub(super) session: Option<Secret>,
}

/// The keys as they are now. `variable` looks into the environment.
pub(super) async fn read(from: &AwsKeys, variable: impl Fn(&str) -> Option<String>) -> Result<Keys, CredentialFault> {
    if let AwsKeys::Files { access_key_id, secret_file, session_token_file } = from {
        let session = match session_token_file {
            Some(path) => Some(read_secret(path).await?),
            None => None,
        };
        return Ok(Keys { id: access_key_id.clone(), secret: read_secret(secret_file).await?, session });
    }
    let set = |name| variable(name).filter(|value| !value.is_empty());
    if let Some((id, secret)) = set("AWS_ACCESS_KEY_ID").zip(set("AWS_SECRET_ACCESS_KEY")) {
        let session = set("AWS_SESSION_TOKEN").map(Secret::new);
        return Ok(Keys { id, secret: Secret::new(secret), session });
    }
    let profile = set("AWS_PROFILE").unwrap_or_else(|| DEFAULT_PROFILE.to_owned());
    let at_home = || PathBuf::from(set("HOME").unwrap_or_default()).join(".aws/credentials");
    let path = set("AWS_SHARED_CREDENTIALS_FILE").map_or_else(at_home, PathBuf::from);
    let text = match read_file(&path, MAX_SECRET).await {
        Err(CredentialFault::Unreadable { source, .. }) if is_not_found(&source) => String::new(),
        read => read?,
    };
    of_profile(&text, &profile).ok_or(CredentialFault::NoKeys { path, profile })
}

/// Of a file as `[profile]` and `key = value` lines.
fn of_profile(text: &str, profile: &str) -> Option<Keys> {
    let (mut id, mut secret, mut session) = (None, None, None);
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            inside = name.trim() == profile;
        } else if inside
            && !line.starts_with(['#', ';'])
            && let Some((key, value)) = line.split_once('=')
        {
            let slot = match key.trim() {
                "aws_access_key_id" => &mut id,
                "aws_secret_access_key" => &mut secret,
                "aws_session_token" => &mut session,
                _ => continue,
            };
            *slot = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        }
    }
    Some(Keys { id: id?, secret: Secret::new(secret?), session: session.map(Secret::new) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(id: &str, secret: &str, session: Option<&str>) -> Keys {
        Keys { id: id.into(), secret: Secret::new(secret), session: session.map(Secret::new) }
    }

    async fn standard(set: &[(&str, &str)]) -> Result<Keys, CredentialFault> {
        let find = |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        read(&AwsKeys::Standard, find).await
    }

    #[tokio::test]
    async fn the_environment_goes_before_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().to_str().unwrap();
        let file = directory.path().join(".aws/credentials");
        std::fs::create_dir(directory.path().join(".aws")).unwrap();
        let text = "# of aws configure\n[default]\naws_access_key_id = A1\naws_secret_access_key=S/1+=\n\n[ work ]\naws_session_token=T\naws_access_key_id=A2\nregion = eu\naws_secret_access_key = S2\n[half]\naws_access_key_id=A3\n";
        std::fs::write(&file, text).unwrap();
        let home = ("HOME", home);
        assert_eq!(standard(&[home]).await.unwrap(), keys("A1", "S/1+=", None));
        assert_eq!(standard(&[home, ("AWS_PROFILE", "work")]).await.unwrap(), keys("A2", "S2", Some("T")));
        let written = [home, ("AWS_ACCESS_KEY_ID", "E"), ("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_SESSION_TOKEN", "")];
        assert_eq!(standard(&written).await.unwrap(), keys("E", "s", None));
        let fault = standard(&[home, ("AWS_PROFILE", "half")]).await.unwrap_err().to_string();
        assert!(fault.contains("AWS_ACCESS_KEY_ID") && fault.contains(".aws/credentials"), "{fault}");
        let elsewhere = [home, ("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")];
        assert!(matches!(standard(&elsewhere).await, Err(CredentialFault::NoKeys { .. })));
    }

    #[tokio::test]
    async fn files_are_read_each_time() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let from = AwsKeys::Files {
            access_key_id: "A".into(),
            secret_file: at("secret"),
            session_token_file: Some(at("session")),
        };
        assert!(matches!(read(&from, |_| None).await, Err(CredentialFault::Unreadable { .. })));
        for round in ["1", "2"] {
            std::fs::write(at("secret"), format!("s{round}\n")).unwrap();
            std::fs::write(at("session"), format!("t{round}\n")).unwrap();
            let expected = keys("A", &format!("s{round}"), Some(&format!("t{round}")));
            assert_eq!(read(&from, |_| None).await.unwrap(), expected);
        }
    }
}
