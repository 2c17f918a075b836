//! Bytes over TCP.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::{MAX_OUTPUT, ProbeError};

/// Sends bytes and waits until what comes contains others. Where neither is wanted, that there is a connection is all.
///
/// # Errors
/// The connection breaks, or ends, or [`MAX_OUTPUT`] bytes have come without those that are waited for.
pub async fn tcp(
    mut io: impl AsyncRead + AsyncWrite + Unpin,
    send: &[u8],
    receive: &[u8],
) -> Result<(), ProbeError> {
    if !send.is_empty() {
        io.write_all(send).await?;
        io.flush().await?;
    }
    let mut found = Found::new(receive);
    let mut piece = [0; 512];
    while !found.is_there() {
        match io.read(&mut piece).await? {
            0 => return Err(found.ended()),
            count => found.take(&piece[..count])?,
        }
    }
    Ok(())
}

/// What has come, and what is waited for.
pub(crate) struct Found<'a> {
    wanted: &'a [u8],
    so_far: Vec<u8>,
}

impl<'a> Found<'a> {
    pub(crate) const fn new(wanted: &'a [u8]) -> Self {
        Self { wanted, so_far: Vec::new() }
    }

    pub(crate) fn is_there(&self) -> bool {
        self.wanted.is_empty() || self.so_far.windows(self.wanted.len()).any(|some| some == self.wanted)
    }

    pub(crate) fn take(&mut self, piece: &[u8]) -> Result<(), ProbeError> {
        self.so_far.extend_from_slice(piece);
        if self.so_far.len() > MAX_OUTPUT && !self.is_there() {
            return Err(ProbeError::Unexpected(format!(
                "{MAX_OUTPUT} bytes came without those that are waited for"
            )));
        }
        Ok(())
    }

    pub(crate) fn ended(&self) -> ProbeError {
        let count = self.so_far.len();
        ProbeError::Unexpected(format!("it closed after {count} bytes, without those that are waited for"))
    }
}
