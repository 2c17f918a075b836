use std::future::poll_fn;

use bytes::BytesMut;
use proptest::prelude::*;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::gather::Flusher;
use crate::http::flow::UNBOUNDED;
use crate::http::frames::tests::frame;
use crate::io::Io;
use crate::replay::Replayed;

/// As `h2` says them: with the largest window.
fn settings(window: u32) -> Vec<u8> {
    let of = |id: u8, value: u32| [vec![0, id], value.to_be_bytes().to_vec()].concat();
    frame(4, 0, 0, &[of(3, 128), of(4, window), of(6, UNBOUNDED)].concat())
}

fn update(stream: u32, bytes: u32) -> Vec<u8> {
    frame(8, 0, stream, &bytes.to_be_bytes())
}

struct Tried {
    writes: Writes,
    received: Rc<Received>,
    flusher: Flusher,
    peer: TcpStream,
}

impl Tried {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let (gathered, flusher) = Gathered::new(Replayed::new(BytesMut::new(), Io::Tcp(server)));
        let received = Rc::<Received>::default();
        let writes = Writes::new(gathered, Rc::clone(&received), 0);
        Self { writes, received, flusher, peer }
    }

    /// One whose SETTINGS were said and acknowledged, and with this stream.
    async fn agreed(stream: u32) -> Self {
        let mut tried = Self::new().await;
        tried.write(&settings(UNBOUNDED)).await;
        tried.received.flow().begins(stream);
        tried.received.flow().agrees();
        tried
    }

    async fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let bufs = [IoSlice::new(bytes)];
            let count = poll_fn(|cx| self.writes.poll_write_vectored(cx, &bufs, |_| {})).await.unwrap();
            bytes = &bytes[count..];
        }
    }

    /// All that was written.
    async fn arrived(self) -> Vec<u8> {
        poll_fn(|cx| self.flusher.poll_flush(cx, true)).await.unwrap();
        let Self { writes, flusher, mut peer, .. } = self;
        drop((writes, flusher));
        let mut got = Vec::new();
        peer.read_to_end(&mut got).await.unwrap();
        got
    }
}

proptest! {
    #[test]
    fn settings_say_what_is_true_in_whatever_portions_and_the_rest_is_as_it_was(portion in 1usize..80) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let of = |window| [settings(window), update(0, 7), frame(1, 4, 1, b"head"), frame(0, 0, 1, b"data")].concat();
        let got = runtime.block_on(async {
            let mut tried = Tried::new().await;
            for part in of(UNBOUNDED).chunks(portion) {
                tried.write(part).await;
            }
            tried.arrived().await
        });
        prop_assert_eq!(got, of(SMALLEST));
    }
}

#[tokio::test]
async fn what_is_owed_goes_before_the_next_frame_and_not_into_a_head_or_a_block() {
    let mut tried = Tried::agreed(9).await;
    let flow = Rc::clone(&tried.received);
    let (first, second) = (frame(1, 0, 9, b"block"), frame(9, 4, 9, b"rest"));
    tried.write(&first).await;
    flow.flow().pads(9, SMALLEST);
    assert_eq!(flow.flow().updates(), None, "a block goes on");
    tried.write(&second).await;
    let data = frame(0, 0, 9, &[b'd'; 40_000]);
    tried.write(&data[..20_000]).await;
    flow.flow().pads(9, SMALLEST);
    assert_eq!(flow.flow().updates(), None, "so does a frame");
    tried.write(&data[20_000..]).await;
    tried.write(&update(0, 3)).await;
    let told = update(9, SMALLEST);
    let wanted = [settings(SMALLEST), first, second, told.clone(), data, told, update(0, 3)].concat();
    assert_eq!(tried.arrived().await, wanted);
}

/// Once it has told of what was told before, a peer would have more room than there is, and at last more than there may be.
#[tokio::test]
async fn where_a_stream_has_moved_very_much_h2_tells_of_no_room_in_it() {
    let mut tried = Tried::agreed(9).await;
    let (large, data) = (update(9, 700_000_000), frame(0, 0, 9, &[b'd'; 40_000]));
    tried.received.flow().goes_far();
    tried.write(&[data.clone(), large, update(0, 5), data.clone()].concat()).await;
    tried.write(&data).await;
    let wanted = [settings(SMALLEST), data.clone(), update(9, 1), update(0, 5), data.clone(), data].concat();
    assert_eq!(tried.received.flow().left(9), Some(SMALLEST + 1));
    assert_eq!(tried.arrived().await, wanted);
}

/// The socket may be full in the middle of a frame.
#[tokio::test]
async fn a_frame_that_has_begun_before_passes_as_it_is_beside_what_h2_says() {
    let mut tried = Tried::agreed(9).await;
    tried.received.flow().goes_far();
    let (large, data) = (update(9, 700_000_000), frame(0, 0, 9, &[b'd'; 40_000]));
    tried.write(&large).await;
    tried.write(&data[..20_000]).await;
    tried.write(&[&data[20_000..], &large].concat()).await;
    let wanted = [settings(SMALLEST), update(9, 1), data, update(9, 1)].concat();
    assert_eq!(tried.arrived().await, wanted);
}
