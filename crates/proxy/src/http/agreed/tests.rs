use std::collections::VecDeque;

use proptest::prelude::*;
use tokio::io::AsyncReadExt;

use super::*;

fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
    let mut out = u32::try_from(payload).unwrap().to_be_bytes()[1..].to_vec();
    out.extend([kind, flags, 0, 0, 0, 1]);
    out.resize(out.len() + payload, 9);
    out
}

/// What comes, in these portions; then it waits.
struct Portions(VecDeque<Vec<u8>>);

impl Portions {
    fn of(bytes: &[u8], cuts: &[usize]) -> Self {
        let (mut rest, mut portions, mut cuts) = (bytes, VecDeque::new(), cuts.iter().cycle());
        while !rest.is_empty() {
            let (part, after) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            portions.push_back(part.to_vec());
            rest = after;
        }
        Self(portions)
    }
}

impl AsyncRead for Portions {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let portions = &mut self.get_mut().0;
        let Some(mut part) = portions.pop_front() else { return Poll::Pending };
        let rest = part.split_off(part.len().min(buf.remaining()));
        buf.put_slice(&part);
        if !rest.is_empty() {
            portions.push_front(rest);
        }
        Poll::Ready(Ok(()))
    }
}

/// As both connections use it.
struct Read {
    io: Portions,
    agreed: Agreed,
    incoming: Heads,
}

impl Read {
    fn new(io: Portions) -> Self {
        let agreed = Agreed::new(Rc::new(Received::new(1 << 20)));
        let mut read = Self { io, agreed, incoming: Heads::after(0) };
        read.tells();
        read
    }

    /// SETTINGS of ours go.
    fn tells(&mut self) {
        let mut heads = Heads::after(0);
        let bytes = frame(4, 0, 6);
        let Some(Piece::Head(head)) = heads.next(&mut &bytes[..]) else { panic!("a head") };
        self.agreed.goes(head, &self.incoming);
    }

    /// As much as there is of so many bytes.
    fn take(&mut self, most: usize) -> Vec<u8> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut space = vec![0; most];
        let mut buf = ReadBuf::new(&mut space);
        if self.agreed.poll_read(Pin::new(&mut self.io), &mut cx, &mut buf).is_pending() {
            return Vec::new();
        }
        let got = buf.filled().to_vec();
        assert!(!got.is_empty(), "nothing would be the end");
        let mut rest = &got[..];
        while self.incoming.next(&mut rest).is_some() {}
        got
    }
}

/// What `h2` should have got of `frames`, told after so many bytes: the ACK in front of the first frame that begins behind them and goes
/// on with nothing, and the peer's own no more.
fn expected(frames: &[Vec<u8>], told: usize) -> Vec<u8> {
    let (mut at, mut out, mut is_told, mut is_answered) = (0, Vec::new(), false, false);
    for frame in frames {
        let follows = at >= told && frame[3] != 9;
        if follows && !is_told {
            out.extend(ACK);
            is_told = true;
        }
        let answers = at >= told && !is_answered && frame[..5] == ACK[..5];
        is_answered |= answers;
        if !answers {
            out.extend(frame);
        }
        at += frame.len();
    }
    out
}

proptest! {
    #[test]
    fn h2_hears_of_it_before_all_that_comes_behind_and_never_twice(
        frames in proptest::collection::vec((0u8..11, 0u8..2, 0usize..40), 1..12),
        answer in 0usize..12,
        told in 0usize..400,
        cuts in proptest::collection::vec(1usize..40, 1..8),
        sizes in proptest::collection::vec(1usize..64, 1..8),
    ) {
        // Of acknowledgements there is one, behind what is told.
        let mut frames: Vec<_> = frames
            .into_iter()
            .map(|(kind, flags, len)| frame(kind, if kind == 4 { 0 } else { flags }, len))
            .collect();
        let all: usize = frames.iter().map(Vec::len).sum();
        let told = told.min(all);
        let begins = frames.iter().scan(0, |at, frame| { let begins = *at; *at += frame.len(); Some(begins) });
        let behind = begins.filter(|&begins| begins < told).count();
        frames.insert((behind + answer).min(frames.len()), ACK.to_vec());
        frames.push(frame(0, 0, 3));

        let mut read = Read::new(Portions::of(&frames.concat(), &cuts));
        let (mut got, mut sizes) = (Vec::new(), sizes.iter().cycle());
        while got.len() < told {
            got.extend(read.take((*sizes.next().unwrap()).min(told - got.len())));
        }
        prop_assert!(read.agreed.received.is_agreed());
        read.tells();
        prop_assert!(!read.agreed.received.is_agreed());
        loop {
            let more = read.take(*sizes.next().unwrap());
            if more.is_empty() {
                break;
            }
            got.extend(more);
        }
        prop_assert_eq!(got, expected(&frames, told));
        prop_assert!(read.agreed.received.is_agreed() && read.agreed.under_way.is_none());
    }
}

#[test]
fn the_first_settings_are_answered_by_the_peer_alone() {
    let frames = [ACK.to_vec(), frame(0, 0, 3)].concat();
    let mut read = Read::new(Portions::of(&frames, &[100]));
    assert_eq!(read.take(100), frames);
}

#[test]
fn who_never_answers_is_read_on() {
    let frames: Vec<_> = (0..50).map(|_| frame(0, 0, 30)).collect();
    let mut read = Read::new(Portions::of(&frames.concat(), &[17]));
    read.tells();
    let mut got = Vec::new();
    while got.len() < ACK.len() + 50 * 39 {
        got.extend(read.take(64));
    }
    assert_eq!(got, [ACK.to_vec(), frames.concat()].concat());
    assert!(!read.agreed.received.is_agreed());
}

#[tokio::test]
async fn the_end_of_a_connection_is_passed_on() {
    let (mut near, far) = tokio::io::duplex(64);
    drop(far);
    let mut agreed = Agreed::new(Rc::new(Received::new(1 << 20)));
    agreed.has_begun = true;
    agreed.tells(&Heads::after(0));
    let mut space = [0; 16];
    let mut buf = ReadBuf::new(&mut space);
    std::future::poll_fn(|cx| agreed.poll_read(Pin::new(&mut near), cx, &mut buf)).await.unwrap();
    assert!(buf.filled().is_empty());
    assert_eq!(near.read(&mut [0]).await.unwrap(), 0);
}
