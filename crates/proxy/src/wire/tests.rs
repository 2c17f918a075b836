use std::future::poll_fn;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

async fn pair() -> (Wire, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    (Wire::new(Io::Tcp(server)), client)
}

#[tokio::test]
async fn small_chunks_and_a_large_one_arrive_in_order() {
    let (mut wire, mut peer) = pair().await;
    wire.out().extend_from_slice(b"head:");
    wire.queue(Bytes::from_static(b"small:"));
    wire.queue(Bytes::from(vec![b'x'; COPY_BELOW]));
    wire.queue(Bytes::from_static(b":tail"));
    poll_fn(|cx| wire.poll_flush(cx)).await.unwrap();
    drop(wire);
    let mut got = Vec::new();
    peer.read_to_end(&mut got).await.unwrap();
    let expected = [b"head:small:".as_slice(), &vec![b'x'; COPY_BELOW], b":tail"].concat();
    assert_eq!(got, expected);
}

#[tokio::test]
async fn reads_into_uninitialised_capacity_show_only_what_arrived() {
    let (mut wire, mut peer) = pair().await;
    for round in 0..3u8 {
        peer.write_all(&[round; 300]).await.unwrap();
        let mut got = 0;
        while got < 300 {
            got += poll_fn(|cx| wire.poll_fill(cx)).await.unwrap();
        }
        assert_eq!(&wire.read[..], &[round; 300]);
        wire.read.clear();
        wire.release_buffers();
        assert_eq!(wire.read.capacity(), 0, "an idle connection holds no buffer");
    }
    drop(peer);
    assert_eq!(poll_fn(|cx| wire.poll_fill(cx)).await.unwrap(), 0);
    assert!(wire.eof);
}

#[tokio::test]
async fn a_large_block_that_one_connection_gave_back_is_the_next_one_s() {
    let (mut one, mut sender) = pair().await;
    let (mut other, mut other_sender) = pair().await;
    let body = vec![b'x'; 3 * READ_CHUNK];
    let mut places = [Vec::new(), Vec::new()];
    let connections = [(&mut one, &mut sender), (&mut other, &mut other_sender)];
    for ((wire, peer), places) in connections.into_iter().zip(&mut places) {
        peer.write_all(&body).await.unwrap();
        let mut got = 0;
        while got < body.len() {
            got += poll_fn(|cx| wire.poll_fill(cx)).await.unwrap();
            places.push(wire.read.as_ptr().addr());
            drop(wire.read.split().freeze());
        }
        wire.release_buffers();
        assert_eq!(wire.read.capacity(), 0, "an idle connection holds no buffer");
    }
    let [of_one, of_other] = places;
    assert!(of_other.iter().any(|place| of_one.contains(place)), "{of_one:x?} {of_other:x?}");
    assert_eq!(BLOCKS.with_borrow(Vec::len), 1, "and it was given back again");
}
