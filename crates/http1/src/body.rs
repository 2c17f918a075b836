//! Bodies: where they end, and chunks (RFC 9112 sections 6 and 7).

use bytes::{Buf, Bytes, BytesMut};

use crate::chars::{is_field_value, is_token_byte};
use crate::error::ParseError;
use crate::fields::Fields;
use crate::framing::{BodyLength, DIGITS};
use crate::limits::{Limit, Limits};
use crate::name::KnownName;
use crate::scan::HeadScan;

/// What the front of a buffer holds. The first `skip` bytes are framing: drop them in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing more can be said before more bytes arrive.
    NeedMore {
        /// Bytes of framing to drop.
        skip: usize,
    },
    /// Bytes of the body.
    Data {
        /// Bytes of framing to drop before the data.
        skip: usize,
        /// Bytes of data behind them, at least 1.
        len: usize,
    },
    /// The body is complete; what follows belongs to the next message. [`BodyDecoder::take_trailers`] has its trailers.
    End {
        /// Bytes of framing to drop.
        skip: usize,
    },
}

/// What [`BodyDecoder::decode`] took from a buffer.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded {
    /// Nothing more can be said before more bytes arrive.
    NeedMore,
    /// Bytes of the body, at least 1, not copied.
    Data(Bytes),
    /// The body is complete.
    End {
        /// The trailers, if the message had any.
        trailers: Option<Fields>,
    },
}

#[derive(Clone, Debug)]
enum State {
    Done,
    Known(u64),
    UntilClose,
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
}

/// Finds the end of one body.
#[derive(Clone, Debug)]
pub struct BodyDecoder {
    state: State,
    /// Bytes of chunk extensions that no data has paid for.
    ext: u64,
    scan: HeadScan,
    trailers: Option<Box<Fields>>,
}

impl BodyDecoder {
    /// A decoder for a body of that length.
    #[must_use]
    pub fn new(length: BodyLength) -> Self {
        let state = match length {
            BodyLength::None | BodyLength::Known(0) => State::Done,
            BodyLength::Known(n) => State::Known(n),
            BodyLength::Chunked => State::ChunkSize,
            BodyLength::UntilClose => State::UntilClose,
        };
        Self { state, ext: 0, scan: HeadScan::default(), trailers: None }
    }

    /// Whether the whole body was seen.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// How many bytes are still to come, where that was declared.
    #[must_use]
    pub const fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Done => Some(0),
            State::Known(n) => Some(n),
            _ => None,
        }
    }

    /// So many bytes of a body of known length have gone by without being decoded: the kernel moved them.
    ///
    /// # Panics
    /// In debug builds, if so many were not to come.
    pub fn pass(&mut self, bytes: u64) {
        let State::Known(left) = self.state else {
            debug_assert!(false, "only a body of known length is told apart without being seen");
            return;
        };
        debug_assert!(bytes <= left, "{bytes} bytes of a body of which {left} are left");
        self.state = match left.saturating_sub(bytes) {
            0 => State::Done,
            left => State::Known(left),
        };
    }

    /// The trailers, once the body is complete.
    pub fn take_trailers(&mut self) -> Option<Fields> {
        self.trailers.take().map(|boxed| *boxed)
    }

    /// The connection ended.
    ///
    /// # Errors
    /// [`ParseError::PrematureEof`] when the body was not complete: pass on an aborted message, never a clean end.
    pub fn finish_eof(&mut self) -> Result<(), ParseError> {
        match self.state {
            State::Done | State::UntilClose => {
                self.state = State::Done;
                Ok(())
            }
            _ => Err(ParseError::PrematureEof),
        }
    }

    /// Looks at the front of `buf`, which must begin where the last step left off: behind `skip` and, with
    /// [`Step::Data`], behind the data.
    ///
    /// # Errors
    /// [`ParseError`]: the message is broken and the connection with it.
    pub fn step(&mut self, buf: &[u8], limits: &Limits) -> Result<Step, ParseError> {
        let mut skip = 0;
        loop {
            let rest = &buf[skip..];
            match self.state {
                State::Done => return Ok(Step::End { skip }),
                State::Known(left) => return Ok(self.data(skip, rest, left, State::Known, State::Done)),
                State::UntilClose if rest.is_empty() => return Ok(Step::NeedMore { skip }),
                State::UntilClose => return Ok(Step::Data { skip, len: rest.len() }),
                State::ChunkData(left) => {
                    return Ok(self.data(skip, rest, left, State::ChunkData, State::ChunkEnd));
                }
                State::ChunkEnd => match rest {
                    [b'\r', b'\n', ..] => {
                        skip += 2;
                        self.state = State::ChunkSize;
                    }
                    [] | [b'\r'] => return Ok(Step::NeedMore { skip }),
                    _ => return Err(ParseError::BadChunkEnd),
                },
                State::ChunkSize => match self.chunk_size(rest, limits)? {
                    Some((line, 0)) => {
                        skip += line;
                        self.state = State::Trailers;
                    }
                    Some((line, size)) => {
                        skip += line;
                        self.state = State::ChunkData(size);
                    }
                    None => return Ok(Step::NeedMore { skip }),
                },
                State::Trailers => match self.trailer_section(rest, limits)? {
                    Some(section) => {
                        skip += section;
                        self.state = State::Done;
                    }
                    None => return Ok(Step::NeedMore { skip }),
                },
            }
        }
    }

    fn data(&mut self, skip: usize, rest: &[u8], left: u64, more: fn(u64) -> State, then: State) -> Step {
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
        let left = left - len as u64;
        self.state = if left == 0 { then } else { more(left) };
        if len == 0 { Step::NeedMore { skip } } else { Step::Data { skip, len } }
    }

    /// Reads the line with a chunk's size; gives its length with CRLF, and the size.
    fn chunk_size(&mut self, rest: &[u8], limits: &Limits) -> Result<Option<(usize, u64)>, ParseError> {
        let mut size = 0u64;
        let mut digits = 0;
        while let Some(digit) = rest.get(digits).and_then(|&b| char::from(b).to_digit(16)) {
            if digits == DIGITS || size >> 56 != 0 {
                // 60 bits: no reader overflows, and nobody has such a chunk.
                return Err(ParseError::BadChunkSize);
            }
            size = size << 4 | u64::from(digit);
            digits += 1;
        }
        let line = match &rest[digits..] {
            [b'\r', b'\n', ..] if digits > 0 => digits + 2,
            [] | [b'\r'] => {
                return if digits > 0 || rest.is_empty() { Ok(None) } else { Err(ParseError::BadChunkSize) };
            }
            _ if digits == 0 => return Err(ParseError::BadChunkSize),
            [b'\n', ..] => return Err(ParseError::BareLf),
            [b';' | b' ' | b'\t', ..] => match self.chunk_ext(&rest[digits..], limits)? {
                Some(ext) => digits + ext,
                None => return Ok(None),
            },
            [b'\r', ..] => return Err(ParseError::BareCr),
            _ => return Err(ParseError::BadChunkSize),
        };
        self.ext = self.ext.saturating_sub(size);
        Ok(Some((line, size)))
    }

    /// Reads the extensions behind a size; gives their length with CRLF. They are dropped, as RFC 9112 section 7.1.1
    /// lets a recipient do.
    fn chunk_ext(&mut self, rest: &[u8], limits: &Limits) -> Result<Option<usize>, ParseError> {
        let over = Err(ParseError::OverLimit { limit: Limit::ChunkExt, max: limits.chunk_ext });
        let allowed = u64::from(limits.chunk_ext).saturating_sub(self.ext);
        let Some(at) = memchr::memchr(b'\n', rest) else {
            // Short by the limit, so that looking at it again with every byte costs little.
            return if rest.len() as u64 > allowed + 1 { over } else { Ok(None) };
        };
        let [ext @ .., b'\r'] = &rest[..at] else { return Err(ParseError::BareLf) };
        if ext.len() as u64 > allowed {
            return over;
        }
        if ext.contains(&b'\r') {
            return Err(ParseError::BareCr);
        }
        if !are_chunk_exts(ext) {
            return Err(ParseError::BadChunkExt);
        }
        self.ext += ext.len() as u64;
        Ok(Some(at + 1))
    }

    /// Reads the trailers and the empty line behind them; gives the length of both.
    fn trailer_section(&mut self, rest: &[u8], limits: &Limits) -> Result<Option<usize>, ParseError> {
        if self.trailers.is_none() {
            match rest {
                [b'\r', b'\n', ..] => return Ok(Some(2)),
                [] | [b'\r'] => return Ok(None),
                _ => {}
            }
        }
        let trailers = self.trailers.get_or_insert_default();
        let section = (Limit::TrailerBytes, limits.trailer_bytes);
        let Some(consumed) = self.scan.fields(rest, limits, section, trailers)? else { return Ok(None) };
        let forbidden = |entry: &crate::fields::Entry| entry.known.is_some_and(KnownName::frames_or_routes);
        if trailers.entries.iter().any(forbidden) {
            Err(ParseError::ForbiddenTrailer)
        } else {
            Ok(Some(consumed))
        }
    }

    /// Takes the next piece of the body out of `buf`, without copying it.
    ///
    /// # Errors
    /// [`ParseError`]: the message is broken and the connection with it.
    pub fn decode(&mut self, buf: &mut BytesMut, limits: &Limits) -> Result<Decoded, ParseError> {
        Ok(match self.step(buf, limits)? {
            Step::NeedMore { skip } => {
                buf.advance(skip);
                Decoded::NeedMore
            }
            Step::Data { skip, len } => {
                buf.advance(skip);
                Decoded::Data(buf.split_to(len).freeze())
            }
            Step::End { skip } => {
                buf.advance(skip);
                Decoded::End { trailers: self.take_trailers() }
            }
        })
    }
}

/// `*( BWS ";" BWS token [ BWS "=" BWS ( token / quoted-string ) ] )`
fn are_chunk_exts(mut ext: &[u8]) -> bool {
    while !ext.is_empty() {
        let Some(rest) = skip_space(ext).strip_prefix(b";") else { return false };
        let Some(rest) = skip_token(skip_space(rest)) else { return false };
        ext = match skip_space(rest).strip_prefix(b"=") {
            None => rest,
            Some(value) => match skip_value(skip_space(value)) {
                Some(rest) => rest,
                None => return false,
            },
        };
    }
    true
}

fn skip_space(bytes: &[u8]) -> &[u8] {
    &bytes[bytes.iter().take_while(|b| matches!(b, b' ' | b'\t')).count()..]
}

fn skip_token(bytes: &[u8]) -> Option<&[u8]> {
    let len = bytes.iter().take_while(|&&b| is_token_byte(b)).count();
    (len > 0).then(|| &bytes[len..])
}

fn skip_value(bytes: &[u8]) -> Option<&[u8]> {
    let Some(mut rest) = bytes.strip_prefix(b"\"") else { return skip_token(bytes) };
    loop {
        rest = match rest {
            [b'"', rest @ ..] => return Some(rest),
            [b'\\', escaped, rest @ ..] if is_field_value(&[*escaped]) => rest,
            [b'\\', ..] | [] => return None,
            [byte, rest @ ..] if is_field_value(&[*byte]) => rest,
            _ => return None,
        };
    }
}
