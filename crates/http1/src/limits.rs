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
    /// Every bound.
    pub const ALL: &[Self] = &[
        Self::RequestLine,
        Self::HeaderLine,
        Self::HeaderCount,
        Self::HeaderBytes,
        Self::ChunkExt,
        Self::TrailerBytes,
    ];

    /// The bound's value.
    #[must_use]
    pub const fn of(self, limits: &Limits) -> u32 {
        match self {
            Self::RequestLine => limits.request_line,
            Self::HeaderLine => limits.header_line,
            Self::HeaderCount => limits.header_count,
            Self::HeaderBytes => limits.header_bytes,
            Self::ChunkExt => limits.chunk_ext,
            Self::TrailerBytes => limits.trailer_bytes,
        }
    }

    /// The flag of a proxy's process that moves this bound.
    #[must_use]
    pub const fn setting(self) -> &'static str {
        match self {
            Self::RequestLine => "--max-request-line-bytes",
            Self::HeaderLine => "--max-header-line-bytes",
            Self::HeaderCount => "--max-header-count",
            Self::HeaderBytes => "--max-header-bytes",
            Self::ChunkExt => "--max-chunk-extension-bytes",
            Self::TrailerBytes => "--max-trailer-bytes",
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
