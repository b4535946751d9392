//! Clients of HTTP/2 that send what costs them little: they are thrown out, and others do not notice.

use std::time::Duration;

use crate::common::content::{blob, sha256};
use crate::common::frames::{CONTINUATION, DATA, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, field, frame, head};
use crate::common::uploading::{UPLOADS, assert_created, closing};
use crate::common::{Ask, Cistern, Upstream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Far more than anybody sends who means it.
const BURSTS: u32 = 20_000;

/// Sends `opening`, then bursts until the other side hangs up; whether it did.
async fn is_thrown_out(cistern: &Cistern, opening: Vec<u8>, burst: impl Fn(u32) -> Vec<u8>) -> bool {
    let connection = TcpStream::connect(cistern.client().0).await.unwrap();
    let (mut reader, mut writer) = connection.into_split();
    let flooding = async {
        writer.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), &opening].concat()).await?;
        for number in 0..BURSTS {
            writer.write_all(&burst(number)).await?;
        }
        Ok::<_, std::io::Error>(())
    };
    let reading = async { while reader.read(&mut [0; 4096]).await.is_ok_and(|count| count > 0) {} };
    let both = async {
        tokio::select! {
            sent = flooding => sent.is_err(),
            () = reading => true,
        }
    };
    timeout(Duration::from_secs(30), both).await.expect("it neither took everything nor hung up")
}

#[tokio::test]
async fn floods_end_their_own_connection() {
    let upstream = Upstream::start().await;
    let cistern = Cistern::start(&upstream, "").await;
    let cancel = [0, 0, 0, 8];
    // CVE-2023-44487: requests that are cancelled at once.
    let resets = is_thrown_out(&cistern, Vec::new(), |number| {
        let stream = 2 * number + 1;
        let request = frame(HEADERS, 5, stream, &head(&format!("/v2/app/manifests/{number}")));
        [request, frame(RST_STREAM, 0, stream, &cancel)].concat()
    });
    assert!(resets.await, "resets");
    assert!(upstream.log().len() < 500, "what was cancelled is hardly asked: {}", upstream.log().len());
    // CVE-2024-27316: a head that never ends.
    let opening = frame(HEADERS, 1, 1, &head("/v2/"));
    let endless = is_thrown_out(&cistern, opening, |_| frame(CONTINUATION, 0, 1, &field("x-a", &"y".repeat(100))));
    assert!(endless.await, "continuations");
    // Frames without content on a stream that stays open.
    let opening = frame(HEADERS, 4, 1, &head("/v2/"));
    let empty = is_thrown_out(&cistern, opening, |_| frame(DATA, 0, 1, &[]).repeat(20));
    assert!(empty.await, "empty frames");
    // CVE-2019-9515, CVE-2019-9512: what has to be acknowledged, each time.
    let window = [0, 4, 0, 1, 0, 0];
    let settings = is_thrown_out(&cistern, Vec::new(), |_| frame(SETTINGS, 0, 0, &window).repeat(20));
    assert!(settings.await, "settings");
    let pings = is_thrown_out(&cistern, Vec::new(), |_| frame(PING, 0, 0, b"12345678").repeat(20));
    assert!(pings.await, "pings");
    assert_eq!(cistern.get("/v2/").await.status, 401, "others are served");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_means_it_is_not_taken_for_a_flood() {
    let upstream = Upstream::start().await;
    let cistern = Cistern::start(&upstream, "").await;
    // Several times what may come in frames that nothing comes of.
    let bytes = blob(1, 9_000_000);
    let digest = sha256(&bytes);
    let got = cistern.send(Ask::post(closing(UPLOADS, &digest)).body(bytes.clone()).http2()).await;
    assert_created(&got, &digest);
    let other = blob(2, 9_000_000);
    let target = format!("/v2/app/blobs/{}", upstream.blob("app", &other));
    for _ in 0..2 {
        cistern.send(Ask::get(&target).http2()).await.assert_is(&other);
    }
}
