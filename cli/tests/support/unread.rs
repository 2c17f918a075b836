//! A pipe whose reader has stopped reading.

use std::fs::File;
use std::io::{ErrorKind, PipeReader, PipeWriter, Write as _};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// Both ends; whoever writes there waits. What fills it are empty lines.
pub fn unread() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let flags = fcntl_getfl(&writer).unwrap();
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
    // Where many do not fit, one may.
    for size in [4096, 1] {
        let lines = vec![b'\n'; size];
        let full = loop {
            if let Err(error) = writer.write_all(&lines) {
                break error;
            }
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
    }
    fcntl_setfl(&writer, flags).unwrap();
    (reader, writer)
}

/// The end for writing, as a process gets it for its stderr.
pub fn file(writer: &PipeWriter) -> File {
    std::os::fd::OwnedFd::from(writer.try_clone().unwrap()).into()
}
