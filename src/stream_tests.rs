//! Both ends of a stream, over a connection in memory.

use tokio::{
    io::{DuplexStream, duplex, split},
    task::JoinHandle,
};

use super::*;

type Carried = JoinHandle<Result<(), StreamError>>;

/// A user's and a guest's side of a stream, with what carries them.
async fn joined() -> (DuplexStream, DuplexStream, Carried, Carried) {
    let (left, right) = duplex(1000);
    let (user, near) = duplex(1000);
    let (guest, far) = duplex(1000);
    let (left, right) = (over(left, End::User).await, over(right, End::Guest).await);
    let ((near_from, near_to), (far_from, far_to)) = (split(near), split(far));
    let near = tokio::spawn(carry(left, End::User, near_from, near_to));
    let far = tokio::spawn(carry(right, End::Guest, far_from, far_to));
    (user, guest, near, far)
}

async fn rest(from: &mut DuplexStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test]
async fn one_direction_may_end_long_before_the_other() {
    let (mut user, mut guest, near, far) = joined().await;
    user.write_all(b"question").await.unwrap();
    user.shutdown().await.unwrap();
    assert_eq!(rest(&mut guest).await, b"question");
    let long = vec![7; 300_000];
    let (answer, heard) = tokio::join!(
        async {
            guest.write_all(&long).await.unwrap();
            guest.shutdown().await.unwrap();
        },
        rest(&mut user)
    );
    let () = answer;
    assert_eq!(heard, long);
    near.await.unwrap().unwrap();
    far.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_guest_may_end_first() {
    let (mut user, mut guest, near, far) = joined().await;
    guest.write_all(b"welcome").await.unwrap();
    guest.shutdown().await.unwrap();
    assert_eq!(rest(&mut user).await, b"welcome");
    user.write_all(b"late").await.unwrap();
    user.shutdown().await.unwrap();
    assert_eq!(rest(&mut guest).await, b"late");
    near.await.unwrap().unwrap();
    far.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_cut_is_no_end() {
    let (mut user, _guest, near, far) = joined().await;
    far.abort();
    assert!(matches!(near.await.unwrap(), Err(StreamError::Cut)));
    assert_eq!(rest(&mut user).await, b"");
}

#[tokio::test(start_paused = true)]
async fn silence_ends_a_stream() {
    let (left, _nobody) = duplex(1 << 20);
    let left = over(left, End::User).await;
    let ended = carry(left, End::User, tokio::io::empty(), tokio::io::sink()).await;
    assert!(matches!(ended, Err(StreamError::Silent)), "{ended:?}");
}

#[test]
fn only_a_websocket_of_the_right_kind_is_taken() {
    let mut headers = HeaderMap::new();
    assert!(asked(&headers).is_err());
    headers.insert(header::UPGRADE, "websocket".parse().unwrap());
    headers.insert(header::CONNECTION, "keep-alive, Upgrade".parse().unwrap());
    headers.insert(header::SEC_WEBSOCKET_KEY, "a2V5".parse().unwrap());
    assert!(asked(&headers).unwrap_err().contains("subprotocol"));
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, "v5.channel.k8s.io, v4.channel.k8s.io".parse().unwrap());
    assert_eq!(asked(&headers).unwrap(), "a2V5");
}
