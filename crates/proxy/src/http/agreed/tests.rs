use std::collections::VecDeque;

use proptest::prelude::*;
use tokio::io::AsyncReadExt;

use super::*;
use crate::http::frames;

fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
    frames::tests::frame(kind, flags, 1, &vec![9; payload])
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

/// All that `h2` gets of it, in reads of these sizes, and whether anything is waited for at the end.
fn read(bytes: &[u8], preface: u32, cuts: &[usize], sizes: &[usize]) -> (Vec<u8>, bool) {
    let (mut io, mut agreed) = (Portions::of(bytes, cuts), Agreed::new(preface));
    let (mut all, mut sizes) = (Vec::new(), sizes.iter().cycle());
    loop {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut space = vec![0; *sizes.next().unwrap()];
        let mut buf = ReadBuf::new(&mut space);
        if agreed.poll_read(Pin::new(&mut io), &mut cx, &mut buf).is_pending() {
            return (all, agreed.0.is_some());
        }
        assert!(!buf.filled().is_empty(), "nothing would be the end");
        all.extend(buf.filled());
    }
}

proptest! {
    #[test]
    fn h2_hears_of_it_behind_the_first_frame_and_never_twice(
        preface in prop_oneof![Just(0usize), Just(24)],
        frames in proptest::collection::vec((0u8..11, 0u8..2, 0usize..40), 2..12),
        answer in 0usize..12,
        cuts in proptest::collection::vec(1usize..40, 1..8),
        sizes in proptest::collection::vec(1usize..64, 1..8),
    ) {
        let of = |(kind, flags, len)| frame(kind, if kind == 4 { 0 } else { flags }, len);
        let first = frame(4, 0, 12);
        let rest: Vec<_> = frames.into_iter().map(of).collect();
        let (before, behind) = rest.split_at(answer.min(rest.len()));
        let preface_bytes = vec![b'P'; preface];
        let sent = [&preface_bytes[..], &first, &before.concat(), &ACK, &behind.concat()].concat();
        let expected = [&preface_bytes[..], &first, &ACK, &rest.concat()].concat();
        let (got, waits) = read(&sent, u32::try_from(preface).unwrap(), &cuts, &sizes);
        prop_assert_eq!(got, expected);
        prop_assert!(!waits);
    }
}

#[test]
fn who_never_answers_is_read_on() {
    let frames = (0..50).map(|_| frame(0, 0, 30)).collect::<Vec<_>>().concat();
    let sent = [frame(4, 0, 0), frames.clone()].concat();
    assert_eq!(read(&sent, 0, &[17], &[64]), ([frame(4, 0, 0), ACK.to_vec(), frames].concat(), true));
}

#[test]
fn who_acknowledges_first_of_all_is_heard() {
    let sent = [ACK.to_vec(), frame(4, 0, 12), frame(0, 0, 30)].concat();
    assert_eq!(read(&sent, 0, &[100], &[64]), (sent, false));
}

/// `h2` ends a connection whose peer acknowledges what was not said.
#[test]
fn what_is_acknowledged_twice_is_left_to_h2() {
    let sent = [frame(4, 0, 0), ACK.to_vec(), ACK.to_vec(), frame(6, 0, 8)].concat();
    assert_eq!(read(&sent, 0, &[100], &[64]), (sent, false));
}

#[tokio::test]
async fn the_end_of_a_connection_is_passed_on() {
    let (mut near, far) = tokio::io::duplex(64);
    drop(far);
    let mut agreed = Agreed::new(0);
    let mut space = [0; 16];
    let mut buf = ReadBuf::new(&mut space);
    std::future::poll_fn(|cx| agreed.poll_read(Pin::new(&mut near), cx, &mut buf)).await.unwrap();
    assert!(buf.filled().is_empty());
    assert_eq!(near.read(&mut [0]).await.unwrap(), 0);
}
