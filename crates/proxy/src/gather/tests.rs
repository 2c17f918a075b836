//! What arrives, and in how many pieces.

use std::future::poll_fn;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::io::Io;

async fn pair() -> (Gathered, Flusher, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    let (gathered, flusher) = Gathered::new(Replayed::new(BytesMut::new(), Io::Tcp(server)));
    (gathered, flusher, client)
}

#[tokio::test]
async fn before_anybody_flushes_a_flush_is_one() {
    let (mut gathered, _flusher, mut peer) = pair().await;
    gathered.write_all(b"preface").await.unwrap();
    gathered.flush().await.unwrap();
    let mut got = [0; 7];
    peer.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"preface");
}

#[tokio::test]
async fn small_writes_leave_together_when_the_task_flushes() {
    let (mut gathered, flusher, mut peer) = pair().await;
    poll_fn(|cx| flusher.poll_flush(cx, true)).await.unwrap();
    for frame in ["one ", "two ", "three"] {
        gathered.write_all(frame.as_bytes()).await.unwrap();
        gathered.flush().await.unwrap();
    }
    let mut got = [0; 64];
    assert_eq!(peer.try_read(&mut got).unwrap_err().kind(), io::ErrorKind::WouldBlock, "nothing has left");
    poll_fn(|cx| flusher.poll_flush(cx, true)).await.unwrap();
    let count = peer.read(&mut got).await.unwrap();
    assert_eq!(&got[..count], b"one two three");
    assert_eq!(gathered.0.borrow().out.capacity(), 0, "an idle connection holds no buffer");
}

#[tokio::test]
async fn all_sizes_arrive_in_order_whoever_reads_however_slowly() {
    let (mut gathered, flusher, mut peer) = pair().await;
    let sizes = [1, 300, GATHER - 1, GATHER, GATHER + 1, 5, 200_000, 17, 3 * GATHER, 1_000_000];
    let sent: Vec<Vec<u8>> = (0_u8..).zip(sizes).map(|(fill, len)| vec![fill; len]).collect();
    let expected = sent.concat();
    let writing = async {
        for frame in &sent {
            let (head, mut payload) = frame.split_at(frame.len() / 3);
            let mut head = head;
            while !head.is_empty() || !payload.is_empty() {
                let slices = [IoSlice::new(head), IoSlice::new(payload)];
                let count = gathered.write_vectored(&slices).await.unwrap();
                let of_head = count.min(head.len());
                (head, payload) = (&head[of_head..], &payload[count - of_head..]);
            }
            poll_fn(|cx| flusher.poll_flush(cx, false)).await.unwrap();
        }
        gathered.write_all(b"end").await.unwrap();
        gathered.shutdown().await.unwrap();
    };
    let reading = async {
        let mut got = Vec::new();
        let mut chunk = [0; 997];
        loop {
            match peer.read(&mut chunk).await.unwrap() {
                0 => break got,
                count => got.extend_from_slice(&chunk[..count]),
            }
        }
    };
    let ((), got) = tokio::join!(writing, reading);
    assert!(got == [expected.as_slice(), b"end"].concat(), "{} bytes", got.len());
}
