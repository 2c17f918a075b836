//! The heads of HTTP/2's frames in a stream of bytes (RFC 9113 section 4.1), without looking at what they carry.

/// Bytes that a client sends before its first frame.
pub(crate) const PREFACE_LEN: u32 = 24;
const HEAD_LEN: usize = 9;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Data,
    Headers,
    Priority,
    Reset,
    Settings,
    PushPromise,
    Ping,
    GoAway,
    WindowUpdate,
    Continuation,
    Unknown,
}

impl Kind {
    const fn of(code: u8) -> Self {
        match code {
            0 => Self::Data,
            1 => Self::Headers,
            2 => Self::Priority,
            3 => Self::Reset,
            4 => Self::Settings,
            5 => Self::PushPromise,
            6 => Self::Ping,
            7 => Self::GoAway,
            8 => Self::WindowUpdate,
            9 => Self::Continuation,
            _ => Self::Unknown,
        }
    }

    /// What too many of it are called.
    pub(crate) const fn flood(self) -> &'static str {
        match self {
            Self::Data => "empty_data_flood",
            Self::Headers => "trailers_flood",
            Self::Priority => "priority_flood",
            Self::Reset => "reset_flood",
            Self::Settings => "settings_flood",
            Self::PushPromise => "push_promise",
            Self::Ping => "ping_flood",
            Self::GoAway => "goaway_flood",
            Self::WindowUpdate => "window_update_flood",
            Self::Continuation => "continuation_flood",
            Self::Unknown => "unknown_frame_flood",
        }
    }
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) flags: u8,
    pub(crate) len: u32,
    pub(crate) stream: u32,
}

impl Head {
    fn parse(bytes: [u8; HEAD_LEN]) -> Self {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = bytes;
        Self {
            kind: Kind::of(kind),
            flags,
            len: u32::from_be_bytes([0, l0, l1, l2]),
            stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]),
        }
    }

    const fn has_flag_1(self) -> bool {
        self.flags & 1 == 1
    }

    /// END_STREAM, of DATA and HEADERS.
    pub(crate) const fn ends_stream(self) -> bool {
        self.has_flag_1()
    }

    /// Whether it says that there is room in one stream.
    pub(crate) fn is_of_stream(self) -> bool {
        self.kind == Kind::WindowUpdate && self.stream != 0
    }

    /// It acknowledges SETTINGS.
    pub(crate) fn is_agreed(self) -> bool {
        self.kind == Kind::Settings && self.has_flag_1()
    }

    /// A frame of a body part of which is padding: its first byte says how much besides itself.
    pub(crate) fn is_padded(self) -> bool {
        self.kind == Kind::Data && self.flags & 8 == 8
    }

    /// Whether a block of fields goes on behind this frame, where one was or was not open before it.
    pub(crate) const fn leaves_block_open(self, before: bool) -> bool {
        let ends = self.flags & 4 == 4;
        match self.kind {
            Kind::Headers => !ends,
            Kind::Continuation => before && !ends,
            _ => false,
        }
    }

    /// Whether the length is one that this kind of frame cannot have.
    pub(crate) const fn is_misshapen(self) -> bool {
        match self.kind {
            Kind::Priority => self.len != 5,
            Kind::Reset | Kind::WindowUpdate => self.len != 4,
            // An acknowledgement is empty.
            Kind::Settings => !self.len.is_multiple_of(6) || self.has_flag_1() && self.len > 0,
            Kind::Ping => self.len != 8,
            Kind::GoAway => self.len < 8,
            _ => false,
        }
    }
}

/// The code of a GOAWAY (RFC 9113 section 6.8), from its payload in whatever portions that comes.
#[derive(Debug, Default)]
pub(crate) struct GoodbyeCode {
    have: usize,
    code: u32,
}

impl GoodbyeCode {
    /// Takes more of the payload; the code, once it is whole.
    pub(crate) fn read(&mut self, payload: &[u8]) -> Option<u32> {
        // The last stream stands before it.
        const LAST: usize = 4;
        const END: usize = 8;
        for &byte in payload {
            if self.have == END {
                break;
            }
            if self.have >= LAST {
                self.code = self.code << 8 | u32::from(byte);
            }
            self.have += 1;
            if self.have == END {
                return Some(self.code);
            }
        }
        None
    }
}

/// By how much a WINDOW_UPDATE opens a window (RFC 9113 section 6.9), from its payload in whatever portions that comes.
#[derive(Debug, Default)]
pub(crate) struct Increment {
    have: usize,
    bytes: u32,
}

impl Increment {
    /// Takes more of the payload; the increment, once it is whole.
    pub(crate) fn read(&mut self, payload: &[u8]) -> Option<u32> {
        const END: usize = 4;
        for &byte in payload {
            self.bytes = self.bytes << 8 | u32::from(byte);
            self.have += 1;
            if self.have == END {
                return Some(self.bytes & !(1 << 31));
            }
        }
        None
    }
}

/// A piece of the stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'b> {
    Head(Head),
    Payload(&'b [u8]),
}

/// Finds heads in whatever portions the bytes come.
#[derive(Clone, Debug)]
pub(crate) struct Heads {
    head: [u8; HEAD_LEN],
    have: usize,
    skip: u32,
}

impl Heads {
    /// The first head follows so many other bytes.
    pub(crate) const fn after(skip: u32) -> Self {
        Self { head: [0; HEAD_LEN], have: 0, skip }
    }

    /// Where in the bytes that come next a frame says of what kind it is, if it begins there.
    pub(crate) fn next_kind(&self) -> Option<usize> {
        const KIND_AT: usize = 3;
        (self.skip == 0).then(|| KIND_AT.checked_sub(self.have)).flatten()
    }

    /// The bytes of the head that has just been given.
    pub(crate) const fn last(&self) -> &[u8; HEAD_LEN] {
        &self.head
    }

    /// Whether the next byte is the first one of a frame.
    pub(crate) const fn is_between(&self) -> bool {
        self.skip == 0 && self.have == 0
    }

    /// Whether bytes of the last head's payload are still to come.
    pub(crate) const fn is_inside(&self) -> bool {
        self.skip > 0
    }

    /// The next whole piece, taken off `bytes`; `None` when all of them are taken.
    pub(crate) fn next<'b>(&mut self, bytes: &mut &'b [u8]) -> Option<Piece<'b>> {
        if bytes.is_empty() {
            return None;
        }
        if self.skip > 0 {
            let count = bytes.len().min(self.skip as usize);
            let (payload, rest) = bytes.split_at(count);
            self.skip -= u32::try_from(count).expect("at most what is to be skipped");
            *bytes = rest;
            return Some(Piece::Payload(payload));
        }
        let count = bytes.len().min(HEAD_LEN - self.have);
        let (part, rest) = bytes.split_at(count);
        self.head[self.have..self.have + count].copy_from_slice(part);
        self.have += count;
        *bytes = rest;
        if self.have < HEAD_LEN {
            return None;
        }
        self.have = 0;
        let head = Head::parse(self.head);
        self.skip = head.len;
        Some(Piece::Head(head))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A whole frame.
    pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        out.extend([kind, flags]);
        out.extend(stream.to_be_bytes());
        out.extend(payload);
        out
    }

    proptest! {
        #[test]
        fn portions_make_no_difference(
            frames in proptest::collection::vec((0u8..12, any::<u8>(), 0u32..1 << 31, 0usize..40), 1..8),
            cuts in proptest::collection::vec(1usize..30, 1..20),
        ) {
            let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
            for (kind, flags, stream, len) in &frames {
                bytes.extend(frame(*kind, *flags, *stream, &vec![9; *len]));
            }
            let mut heads = Heads::after(PREFACE_LEN);
            let (mut found, mut rest, mut cuts) = (Vec::new(), &bytes[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (mut part, after) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                rest = after;
                while let Some(piece) = heads.next(&mut part) {
                    if let Piece::Head(head) = piece {
                        found.push((head.kind, head.flags, head.stream, head.len as usize));
                    }
                }
            }
            let sent: Vec<_> = frames.iter().map(|(k, f, s, l)| (Kind::of(*k), *f, *s, *l)).collect();
            prop_assert_eq!(found, sent);
        }
    }

    #[test]
    fn what_opens_a_window_is_read_in_whatever_portions() {
        let bytes =
            [frame(8, 0, 3, &[0x80, 1, 2, 3]), frame(6, 0, 0, &[9; 8]), frame(0, 0, 1, &[7; 5])].concat();
        for portion in 1..bytes.len() {
            let (mut heads, mut increment, mut found) = (Heads::after(0), None, Vec::new());
            for mut part in bytes.chunks(portion) {
                while let Some(piece) = heads.next(&mut part) {
                    match piece {
                        Piece::Head(head) => {
                            increment = (head.kind == Kind::WindowUpdate).then(Increment::default);
                        }
                        Piece::Payload(payload) => {
                            found.extend(increment.as_mut().and_then(|increment| increment.read(payload)));
                        }
                    }
                }
            }
            assert_eq!(found, [0x01_02_03], "{portion}");
        }
    }

    #[test]
    fn a_length_that_no_such_frame_has_is_seen() {
        let head = |kind: u8, flags: u8, len: usize| {
            let bytes = frame(kind, flags, 1, &vec![0; len]);
            let mut heads = Heads::after(0);
            let Some(Piece::Head(head)) = heads.next(&mut &bytes[..]) else { panic!("a head") };
            head.is_misshapen()
        };
        for (kind, good, bad) in [(2, 5, 4), (3, 4, 5), (4, 12, 13), (6, 8, 6), (7, 8, 7), (8, 4, 3)] {
            assert!(!head(kind, 0, good) && head(kind, 0, bad), "{kind}");
        }
        assert!(!head(4, 1, 0) && head(4, 1, 6), "an acknowledgement carries nothing");
    }
}
