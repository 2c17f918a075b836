//! How much a sender may make us hold before a head is complete.

use std::fmt;

/// Bounds on what one message may occupy; every bound is named in the error of who exceeds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest request line or status line, in bytes without its CRLF.
    pub request_line: u32,
    /// Longest field line, in bytes without its CRLF.
    pub header_line: u32,
    /// Most field lines in one head; also in one trailer section.
    pub header_count: u32,
    /// Most bytes of all field lines of one head together, line ends included.
    pub header_bytes: u32,
    /// Most bytes of chunk extensions that one body may carry beyond the bytes of its data.
    pub chunk_ext: u32,
    /// Most bytes of all trailer lines of one body together, line ends included.
    pub trailer_bytes: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_line: 16 * 1024,
            header_line: 32 * 1024,
            header_count: 100,
            header_bytes: 60 * 1024,
            chunk_ext: 4 * 1024,
            trailer_bytes: 16 * 1024,
        }
    }
}

/// Which bound was exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    /// [`Limits::request_line`].
    RequestLine,
    /// [`Limits::header_line`].
    HeaderLine,
    /// [`Limits::header_count`].
    HeaderCount,
    /// [`Limits::header_bytes`].
    HeaderBytes,
    /// [`Limits::chunk_ext`].
    ChunkExt,
    /// [`Limits::trailer_bytes`].
    TrailerBytes,
}

impl Limit {
    /// The setting that moves this bound.
    #[must_use]
    pub const fn setting(self) -> &'static str {
        match self {
            Self::RequestLine => "http1.maxRequestLineBytes",
            Self::HeaderLine => "http1.maxHeaderLineBytes",
            Self::HeaderCount => "http1.maxHeaderCount",
            Self::HeaderBytes => "http1.maxHeaderBytes",
            Self::ChunkExt => "http1.maxChunkExtensionBytes",
            Self::TrailerBytes => "http1.maxTrailerBytes",
        }
    }

    /// What the bound is about, as a sentence says it.
    const fn what(self) -> &'static str {
        match self {
            Self::RequestLine => "start line, in bytes",
            Self::HeaderLine => "field line, in bytes",
            Self::HeaderCount => "number of field lines",
            Self::HeaderBytes => "header section, in bytes",
            Self::ChunkExt => "chunk extensions, in bytes",
            Self::TrailerBytes => "trailer section, in bytes",
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what())
    }
}
