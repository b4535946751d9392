//! Clients that left without waiting for an answer: what they had sent is done all the same, some time later.

use std::time::Duration;

use tokio::time::Instant;

/// How long a server may take to notice.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks.
const POLL: Duration = Duration::from_millis(5);
/// A connection that its client has closed and its server has not: `TCP_CLOSE_WAIT` of Linux' `tcp_states.h`. One that
/// waits to be accepted is among them.
const CLOSE_WAIT: &str = "08";

/// Waits until the server at this port has dealt with every connection whose client has left; whether it has.
pub async fn are_dealt_with(port: u16) -> bool {
    let began = Instant::now();
    while waiting(&std::fs::read_to_string("/proc/net/tcp").unwrap_or_default(), port) > 0 {
        if began.elapsed() > PATIENCE {
            return false;
        }
        tokio::time::sleep(POLL).await;
    }
    true
}

/// How many connections at this local port are such, according to a table like `/proc/net/tcp`.
fn waiting(table: &str, port: u16) -> usize {
    let local = format!(":{port:04X}");
    let is_such = |line: &&str| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next().is_some_and(|address| address.ends_with(&local)) && fields.nth(1) == Some(CLOSE_WAIT)
    };
    table.lines().filter(is_such).count()
}

#[test]
fn only_connections_of_the_port_that_the_client_closed_are_waited_for() {
    let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
        0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1 1 0 100 0 0 10 0\n\
        1: 0100007F:1F90 0100007F:C350 08 00000000:00000000 00:00000000 00000000 0 0 0 1 0 20 4 30 10 -1\n\
        2: 0100007F:1F90 0100007F:C351 01 00000000:00000000 00:00000000 00000000 0 0 2 1 0 20 4 30 10 -1\n\
        3: 0100007F:C350 0100007F:1F90 08 00000000:00000000 00:00000000 00000000 0 0 3 1 0 20 4 30 10 -1\n";
    assert_eq!(waiting(table, 8080), 1);
    assert_eq!(waiting(table, 50000), 1);
    assert_eq!(waiting(table, 50001), 0);
}
