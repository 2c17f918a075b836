//! What the guard below `h2` makes of a caller's frames, against a plain reading of the rules that it holds.

use std::collections::BTreeSet;

use meshwork_proxy::parsers::{self, FrameFault};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What all repetitions of an input may come to; enough for the smallest frame ten thousand times.
const LONGEST: usize = 100_000;

/// The first byte says in which portions the bytes come, the second how often the rest is repeated (in hundreds from 128
/// on), which is how floods are reached.
pub(crate) fn judged(data: &[u8]) {
    let [portion, times, rest @ ..] = data else { return };
    let times = if *times < 128 { usize::from(*times) } else { (usize::from(*times) - 127) * 100 };
    let times = times.min(LONGEST / rest.len().max(1)).max(1);
    let bytes = [PREFACE, &rest.repeat(times)].concat();
    let expected = Reader::default().first_fault(&bytes[PREFACE.len()..]);
    for portion in [usize::from(*portion).max(1), bytes.len()] {
        let found = parsers::judge_frames(&bytes, portion);
        assert_eq!(
            found.as_ref().map(|f| f.cause),
            expected.as_ref().map(|e| e.0),
            "in portions of {portion}"
        );
        if let (Some(FrameFault { kept, .. }), Some((_, head, end))) = (found, expected) {
            // The frame never gets whole: at least one byte of it is kept back, and nothing before it.
            let (head, end) = (head + PREFACE.len(), end + PREFACE.len());
            assert!((head..end).contains(&kept), "{kept} of {head} to {end}");
        }
    }
}

/// The rules once more, over whole frames and with sets that forget as little as they may.
struct Reader {
    budget: u32,
    in_block: bool,
    last: u32,
    open: BTreeSet<u32>,
    ended: Vec<u32>,
}

impl Default for Reader {
    fn default() -> Self {
        Self { budget: 10_000, in_block: false, last: 0, open: BTreeSet::new(), ended: Vec::new() }
    }
}

struct Frame<'b> {
    kind: u8,
    flags: u8,
    stream: u32,
    len: usize,
    /// What has come of it.
    payload: &'b [u8],
}

impl Reader {
    /// The cause, where the frame begins, and where it ends.
    fn first_fault(mut self, bytes: &[u8]) -> Option<(&'static str, usize, usize)> {
        let mut at = 0;
        while let Some(&[a, b, c, kind, flags, s0, s1, s2, s3]) = bytes.get(at..at + 9).map(|head| {
            let head: &[u8; 9] = head.try_into().expect("nine bytes");
            head
        }) {
            let len = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            let stream = u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]);
            let end = at + 9 + len;
            let payload = &bytes[at + 9..end.min(bytes.len())];
            let frame = Frame { kind, flags, stream, len, payload };
            if let Some(cause) = self.fault(&frame) {
                return Some((cause, at, end));
            }
            at = end;
        }
        None
    }

    fn fault(&mut self, frame: &Frame<'_>) -> Option<&'static str> {
        let Frame { kind, flags, stream, len, payload } = *frame;
        let wrong = match kind {
            2 => len != 5,
            3 | 8 => len != 4,
            4 => len % 6 != 0 || flags & 1 != 0 && len != 0,
            6 => len != 8,
            7 => len < 8,
            _ => false,
        };
        if wrong {
            return Some("frame_size");
        }
        let (interrupted, ends_block, ends_stream) = (self.in_block, flags & 4 != 0, flags & 1 != 0);
        self.in_block = match kind {
            1 => !ends_block,
            9 => interrupted && !ends_block,
            _ => false,
        };
        let mut carries = false;
        // What interrupts a block is an error that `h2` finds.
        if !interrupted || kind == 9 {
            match kind {
                0 | 1 if kind == 0 || stream <= self.last => {
                    if !self.open.contains(&stream) && self.ended.iter().rev().take(128).any(|e| *e == stream)
                    {
                        return Some("stream_closed");
                    }
                    carries = kind == 0 && (len > 0 || ends_stream);
                    self.end(stream, ends_stream);
                }
                1 => {
                    self.last = stream;
                    self.open.insert(stream);
                    self.end(stream, ends_stream);
                    carries = true;
                }
                3 => self.end(stream, true),
                5 => return Some("push_promise"),
                7 if stream != 0 => return Some("protocol_error"),
                _ => {}
            }
        }
        if carries {
            self.budget = (self.budget + 4).min(10_000);
        } else if self.budget == 0 {
            return Some(flood(kind));
        } else {
            self.budget -= 1;
        }
        let too_wide = |setting: &[u8]| setting[..2] == [0, 4] && setting[2] > 0x7f;
        let settings = kind == 4 && !interrupted;
        (settings && payload.chunks_exact(6).any(too_wide)).then_some("window_size")
    }

    fn end(&mut self, stream: u32, ends: bool) {
        if ends && self.open.remove(&stream) {
            self.ended.push(stream);
        }
    }
}

fn flood(kind: u8) -> &'static str {
    match kind {
        0 => "empty_data_flood",
        1 => "trailers_flood",
        2 => "priority_flood",
        3 => "reset_flood",
        4 => "settings_flood",
        5 => "push_promise",
        6 => "ping_flood",
        7 => "goaway_flood",
        8 => "window_update_flood",
        9 => "continuation_flood",
        _ => "unknown_frame_flood",
    }
}
