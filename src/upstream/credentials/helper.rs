//! Credential helpers: the programs `docker-credential-NAME` of docker's protocol.
//!
//! The protocol does not say how long a secret lives, so nothing of an answer is kept: a helper is asked for each token,
//! and where the secret itself is shown, each minute and when it is refused.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

use super::{Credential, CredentialFault, MAX_SECRET};
use crate::upstream::error::{Cause, sanitise};

/// Time that a helper may take: it may ask a cloud.
const HELPER_TIMEOUT: Duration = Duration::from_secs(8);

/// What went wrong with a credential helper.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HelperFault {
    /// The name cannot be part of a program's name.
    #[error("is not a valid name of a program")]
    Name,
    /// It does not start.
    #[error("does not start: {0}")]
    Start(#[source] Cause),
    /// It took too long and was killed.
    #[error("took longer than {} s", HELPER_TIMEOUT.as_secs())]
    Slow,
    /// It said no.
    #[error("failed: {0}")]
    Failed(String),
    /// It knows nothing of this upstream.
    #[error("has no credential for {0}")]
    NoEntry(String),
    /// Its answer is not the JSON of the protocol.
    #[error("answered with something else than a credential")]
    Malformed,
}

#[derive(Deserialize)]
struct HelperAnswer {
    #[serde(rename = "Username", default)]
    username: String,
    #[serde(rename = "Secret", default)]
    secret: String,
}

/// Asks `docker-credential-NAME` for `server`. None: it knows nothing of it.
pub(super) async fn ask(name: &str, server: &str) -> Result<Option<Credential>, CredentialFault> {
    let fault = |fault| CredentialFault::Helper { name: name.to_owned(), fault };
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if name.is_empty() || !name.bytes().all(plain) {
        return Err(fault(HelperFault::Name));
    }
    let program = format!("docker-credential-{name}");
    match timeout(HELPER_TIMEOUT, run(&program, server)).await {
        Ok(result) => result.map_err(fault),
        Err(_) => Err(fault(HelperFault::Slow)),
    }
}

/// `PROGRAM get` with the server on standard input. Dropped, it kills the program.
async fn run(program: &str, server: &str) -> Result<Option<Credential>, HelperFault> {
    let start = |error| HelperFault::Start(Arc::new(error));
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    if let Some(mut input) = child.stdin.take() {
        // A helper that does not read its input has no use for it.
        let _ = input.write_all(server.as_bytes()).await;
    }
    let mut answer = Vec::new();
    if let Some(output) = child.stdout.take() {
        output.take(MAX_SECRET + 1).read_to_end(&mut answer).await.map_err(start)?;
    }
    if answer.len() as u64 > MAX_SECRET {
        return Err(HelperFault::Malformed);
    }
    let status = child.wait().await.map_err(start)?;
    if !status.success() {
        // The protocol reports failures on standard output.
        let message = String::from_utf8_lossy(&answer);
        if message.contains("credentials not found") {
            return Ok(None);
        }
        return Err(HelperFault::Failed(sanitise(&message)));
    }
    let answer: HelperAnswer = serde_json::from_slice(&answer).map_err(|_| HelperFault::Malformed)?;
    Ok(Some(Credential::from_pair(answer.username, answer.secret)).filter(|credential| *credential != Credential::None))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::Secret;
    use super::*;

    /// A helper as a shell script; run by its path, because changing `PATH` is not sound in a test with threads.
    async fn helper(script: &str) -> Result<Option<Credential>, HelperFault> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("helper");
        tokio::fs::write(&path, format!("#!/bin/sh\n{script}")).await.unwrap();
        tokio::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).await.unwrap();
        // Another thread that forks while the script is still open for writing makes the first start fail.
        for _ in 0..100 {
            match run(path.to_str().unwrap(), "reg.example").await {
                Err(HelperFault::Start(error)) if error.to_string().contains("busy") => tokio::task::yield_now().await,
                result => return result,
            }
        }
        panic!("the helper stays busy")
    }

    #[tokio::test]
    async fn helpers_speak_the_protocol() {
        let echo = r#"[ "$1" = get ] && printf '{"ServerURL":"%s","Username":"u-%s","Secret":"s"}' x "$(cat)""#;
        assert_eq!(
            helper(echo).await.unwrap(),
            Some(Credential::Password { username: "u-reg.example".into(), password: Secret::new("s") })
        );
        let identity = r#"echo '{"Username":"<token>","Secret":"t"}'"#;
        assert_eq!(helper(identity).await.unwrap(), Some(Credential::Identity(Secret::new("t"))));
        assert_eq!(helper("echo credentials not found in native keychain; exit 1").await.unwrap(), None);
        let failed = helper("echo 'no\tkeychain'; exit 1").await.unwrap_err();
        assert_eq!(failed.to_string(), "failed: no keychain");
        assert!(matches!(helper("yes").await, Err(HelperFault::Malformed)), "endless output is cut off");
        assert!(matches!(helper("echo '[1]'").await, Err(HelperFault::Malformed)));
    }

    #[tokio::test]
    async fn helpers_have_plain_names_and_must_exist() {
        let fault = |name: &'static str| async move { ask(name, "reg.example").await.unwrap_err().to_string() };
        assert!(fault("../../bin/sh").await.contains("not a valid name"));
        assert!(fault("surely-not-installed").await.contains("does not start"));
    }
}
