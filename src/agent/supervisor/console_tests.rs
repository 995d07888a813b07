//! The console over a socket in QEMU's place.

use std::time::Duration;

use tokio::{
    io::{DuplexStream, duplex, split},
    net::UnixListener,
};

use super::*;

/// A console, and the guest's end of it.
async fn console() -> (tempfile::TempDir, std::sync::Arc<Console>, UnixStream) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console");
    let listener = UnixListener::bind(&path).unwrap();
    let console = Console::follow(&path).await.unwrap();
    let (guest, _) = listener.accept().await.unwrap();
    (directory, console.into(), guest)
}

/// Somebody who is attached.
async fn attached(console: &std::sync::Arc<Console>) -> DuplexStream {
    let (near, far) = duplex(64);
    let before = console.shown.upgrade().unwrap().receiver_count();
    let own = console.clone();
    tokio::spawn(async move {
        let (from, to) = split(far);
        own.attach(from, to).await;
    });
    while console.shown.upgrade().unwrap().receiver_count() == before {
        tokio::task::yield_now().await;
    }
    near
}

async fn reads(from: &mut (impl AsyncRead + Unpin), what: &str) {
    let mut text = vec![0; what.len()];
    tokio::time::timeout(Duration::from_secs(10), from.read_exact(&mut text)).await.unwrap().unwrap();
    assert_eq!(String::from_utf8(text).unwrap(), what);
}

#[tokio::test]
async fn all_who_are_attached_see_the_same_and_type_into_one_console() {
    let (_directory, console, mut guest) = console().await;
    let (mut one, mut two) = (attached(&console).await, attached(&console).await);
    guest.write_all(b"login: ").await.unwrap();
    reads(&mut one, "login: ").await;
    reads(&mut two, "login: ").await;
    one.write_all(b"root\r").await.unwrap();
    reads(&mut guest, "root\r").await;
    two.write_all(b"\x03").await.unwrap();
    reads(&mut guest, "\x03").await;
    // one goes, the other stays
    drop(one);
    guest.write_all(b"$ ").await.unwrap();
    reads(&mut two, "$ ").await;
    // an end of input is no end of output
    two.shutdown().await.unwrap();
    guest.write_all(b"bye").await.unwrap();
    reads(&mut two, "bye").await;
    drop(guest);
    assert_eq!(two.read(&mut [0]).await.unwrap(), 0, "the guest is gone, and that is seen");
}

#[tokio::test]
async fn d3_a_slow_reader_loses_output_and_stops_nobody() {
    let (_directory, console, mut guest) = console().await;
    let _slow = attached(&console).await;
    let mut quick = attached(&console).await;
    // no line of it is whole, so that the test's own log stays short
    let line = format!("{}\r", "x".repeat(1023));
    // far more than is kept for anybody: the guest is never kept waiting
    for number in 0..(PIECE * LAG * 4 / line.len()) {
        let written = tokio::time::timeout(Duration::from_secs(10), guest.write_all(line.as_bytes())).await;
        written.unwrap_or_else(|_| panic!("the guest waits at line {number}")).unwrap();
        reads(&mut quick, &line).await;
    }
}

#[tokio::test]
async fn nobody_is_attached_to_a_guest_that_is_gone() {
    let (_directory, console, guest) = console().await;
    drop(guest);
    while console.shown.upgrade().is_some() {
        tokio::task::yield_now().await;
    }
    let (mut near, far) = duplex(64);
    let (from, to) = split(far);
    console.attach(from, to).await;
    assert_eq!(near.read(&mut [0]).await.unwrap(), 0);
}
