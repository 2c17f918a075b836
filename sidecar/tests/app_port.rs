//! Which port an application gets. In a process of its own: one that starts others at the same time holds, for a moment,
//! copies of the sockets whose ports are looked at here.

use std::net::TcpListener;

use meshwork_sidecar::{AppError, assign_port};

#[test]
fn a_port_is_kept_while_it_is_free() {
    let folder = tempfile::tempdir().unwrap();
    // An address that no other test uses: what is free stays free.
    let host = "127.83.41.7".parse().unwrap();
    let first = assign_port(folder.path(), host, None).unwrap();
    assert_eq!(assign_port(folder.path(), host, None).unwrap(), first);
    let taken = TcpListener::bind(first).unwrap();
    let other = assign_port(folder.path(), host, None).unwrap();
    assert_ne!(other, first);
    assert!(matches!(assign_port(folder.path(), host, Some(first.port())), Err(AppError::Port { .. })));
    drop(taken);
    assert_eq!(assign_port(folder.path(), host, Some(first.port())).unwrap(), first);
    assert_eq!(
        assign_port(folder.path(), host, None).unwrap(),
        other,
        "what was asked for is not remembered"
    );
}
