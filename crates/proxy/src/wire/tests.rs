use std::future::poll_fn;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

async fn pair() -> (Wire, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    (Wire::new(Io::Tcp(server)), client)
}

#[tokio::test]
async fn small_chunks_and_a_large_one_arrive_in_order() {
    let (mut wire, mut peer) = pair().await;
    wire.out().extend_from_slice(b"head:");
    wire.queue(Bytes::from_static(b"small:"));
    wire.queue(Bytes::from(vec![b'x'; COPY_BELOW]));
    wire.queue(Bytes::from_static(b":tail"));
    poll_fn(|cx| wire.poll_flush(cx)).await.unwrap();
    drop(wire);
    let mut got = Vec::new();
    peer.read_to_end(&mut got).await.unwrap();
    let expected = [b"head:small:".as_slice(), &vec![b'x'; COPY_BELOW], b":tail"].concat();
    assert_eq!(got, expected);
}

/// Whatever is queued while there is room or not, in whatever sizes: it arrives in order.
#[tokio::test]
async fn a_body_in_pieces_of_any_size_arrives_in_order() {
    let sizes = [1, COPY_BELOW - 1, COPY_BELOW, READ_CHUNK, READ_CHUNK + 1, READ_CHUNK_LARGE];
    for (first, second) in sizes.iter().flat_map(|first| sizes.map(|second| (*first, second))) {
        let (mut wire, mut peer) = pair().await;
        let reader = tokio::spawn(async move {
            let mut got = Vec::new();
            peer.read_to_end(&mut got).await.map(|_| got)
        });
        let mut expected = b"head".to_vec();
        wire.out().extend_from_slice(b"head");
        for (letter, size) in [(b'a', first), (b'b', second), (b'c', 3), (b'd', first)] {
            if !wire.has_room() {
                poll_fn(|cx| wire.poll_flush(cx)).await.unwrap();
            }
            let piece = vec![letter; size];
            expected.extend_from_slice(&piece);
            wire.queue(piece.into());
        }
        wire.out().extend_from_slice(b"end");
        expected.extend_from_slice(b"end");
        poll_fn(|cx| wire.poll_flush(cx)).await.unwrap();
        drop(wire);
        assert!(reader.await.unwrap().unwrap() == expected, "{first} and {second}");
    }
}

/// A socket takes a part of what is queued, and then more is queued: what would be written now, in order.
#[tokio::test]
async fn what_is_queued_behind_a_half_written_body_leaves_behind_it() {
    fn queued(wire: &Wire) -> Vec<u8> {
        [&wire.out[..], &wire.big[..], wire.tail, &wire.next[..]].concat()
    }
    let (mut wire, _peer) = pair().await;
    let sizes = [7, COPY_BELOW, READ_CHUNK];
    for (first, second) in sizes.iter().flat_map(|first| sizes.map(|second| (*first, second))) {
        for third in sizes {
            for taken in [1, 7, first, first + 1, first + second - 1, first + second] {
                let mut expected = Vec::new();
                let mut queue = |wire: &mut Wire, letter, size| {
                    wire.queue(Bytes::from(vec![letter; size]));
                    expected.extend(std::iter::repeat_n(letter, size));
                };
                queue(&mut wire, b'a', first);
                queue(&mut wire, b'b', second);
                wire.advance_output(taken);
                queue(&mut wire, b'c', third);
                queue(&mut wire, b'd', first);
                let rest = queued(&wire);
                assert!(rest == expected[taken..], "{taken} of {first} and {second}, then {third}");
                wire.advance_output(rest.len());
                assert!(!wire.has_queued());
            }
        }
    }
}

#[tokio::test]
async fn who_waits_for_bytes_holds_no_buffer_for_them() {
    let (mut wire, mut peer) = pair().await;
    peer.write_all(b"hello").await.unwrap();
    assert_eq!(poll_fn(|cx| wire.poll_fill(cx)).await.unwrap(), 5);
    wire.read.clear();
    wire.release_buffers();
    let mut waiting = poll_fn(|cx| std::task::Poll::Ready(wire.poll_fill(cx).is_pending()));
    assert!((&mut waiting).await);
    assert_eq!(wire.read.capacity(), 0);
    peer.write_all(b"world").await.unwrap();
    assert_eq!(poll_fn(|cx| wire.poll_fill(cx)).await.unwrap(), 5);
    assert_eq!(&wire.read[..], b"world");
}

#[tokio::test]
async fn what_has_been_written_is_not_held() {
    let (mut wire, _peer) = pair().await;
    let pieces = [READ_CHUNK, READ_CHUNK_LARGE].map(|size| Bytes::from(vec![b'x'; size]));
    wire.out().extend_from_slice(b"head");
    pieces.iter().for_each(|piece| wire.queue(piece.clone()));
    wire.advance_output(4 + READ_CHUNK);
    assert_eq!(pieces.each_ref().map(Bytes::is_unique), [true, false]);
    wire.advance_output(READ_CHUNK_LARGE);
    assert_eq!(pieces.each_ref().map(Bytes::is_unique), [true, true]);
}

#[tokio::test]
async fn what_came_with_the_head_leaves_with_what_comes_next() {
    let (mut wire, _peer) = pair().await;
    wire.queue(Bytes::from(vec![b'x'; READ_CHUNK]));
    assert!(wire.has_room(), "one more read may follow");
    wire.queue(Bytes::from(vec![b'y'; READ_CHUNK_LARGE]));
    assert!(!wire.has_room() && wire.out.is_empty(), "nothing is copied");
    let (mut wire, _peer) = pair().await;
    wire.queue(Bytes::from(vec![b'x'; READ_CHUNK_LARGE]));
    assert!(!wire.has_room(), "a large read is enough");
}

#[tokio::test]
async fn reads_into_uninitialised_capacity_show_only_what_arrived() {
    let (mut wire, mut peer) = pair().await;
    for round in 0..3u8 {
        peer.write_all(&[round; 300]).await.unwrap();
        let mut got = 0;
        while got < 300 {
            got += poll_fn(|cx| wire.poll_fill(cx)).await.unwrap();
        }
        assert_eq!(&wire.read[..], &[round; 300]);
        wire.read.clear();
        wire.release_buffers();
        assert_eq!(wire.read.capacity(), 0, "an idle connection holds no buffer");
    }
    drop(peer);
    assert_eq!(poll_fn(|cx| wire.poll_fill(cx)).await.unwrap(), 0);
    assert!(wire.eof);
}

#[tokio::test]
async fn a_large_block_that_one_connection_gave_back_is_the_next_one_s() {
    let (mut one, mut sender) = pair().await;
    let (mut other, mut other_sender) = pair().await;
    let body = vec![b'x'; 3 * READ_CHUNK];
    let mut places = [Vec::new(), Vec::new()];
    let connections = [(&mut one, &mut sender), (&mut other, &mut other_sender)];
    for ((wire, peer), places) in connections.into_iter().zip(&mut places) {
        peer.write_all(&body).await.unwrap();
        let mut got = 0;
        while got < body.len() {
            got += poll_fn(|cx| wire.poll_fill(cx)).await.unwrap();
            places.push(wire.read.as_ptr().addr());
            drop(wire.read.split().freeze());
        }
        wire.release_buffers();
        assert_eq!(wire.read.capacity(), 0, "an idle connection holds no buffer");
    }
    let [of_one, of_other] = places;
    assert!(of_other.iter().any(|place| of_one.contains(place)), "{of_one:x?} {of_other:x?}");
    assert_eq!(blocks::kept()[1], 1, "and it was given back again");
}

/// A connection with TLS, both of whose sockets take little, and its other end.
async fn tight_tls_pair() -> (Wire, tokio_rustls::client::TlsStream<TcpStream>) {
    let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let server = rustls::ServerConfig::builder_with_provider(meshwork_identity::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(meshwork_identity::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = tokio::net::TcpSocket::new_v4().unwrap();
    tcp.set_recv_buffer_size(4096).unwrap();
    let tcp = tcp.connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    socket2::SockRef::from(&accepted).set_send_buffer_size(4096).unwrap();
    let name = rustls_pki_types::ServerName::try_from("a.example").unwrap();
    let (server, client) = tokio::join!(
        tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(server)).accept(accepted),
        tokio_rustls::TlsConnector::from(std::sync::Arc::new(client)).connect(name, tcp),
    );
    (Wire::new(Io::TlsServer(Box::new(server.unwrap()))), client.unwrap())
}

#[tokio::test]
async fn what_tls_holds_on_to_since_the_socket_is_full_leaves_before_a_flush_is_over() {
    const LENGTH: usize = 48 * 1024;
    let (mut wire, mut peer) = tight_tls_pair().await;
    wire.queue(Bytes::from(vec![b'x'; LENGTH]));
    let pending = poll_fn(|cx| std::task::Poll::Ready(wire.poll_flush(cx).is_pending())).await;
    assert!(pending && !wire.has_queued(), "TLS has taken all, and the socket has not");
    assert!(wire.has_output());
    let reading = tokio::spawn(async move {
        let mut got = vec![0; LENGTH];
        peer.read_exact(&mut got).await.map(|_| got)
    });
    poll_fn(|cx| wire.poll_flush(cx)).await.unwrap();
    assert!(!wire.has_output());
    let read = tokio::time::timeout(std::time::Duration::from_secs(10), reading);
    assert!(read.await.expect("all of it comes").unwrap().unwrap() == vec![b'x'; LENGTH]);
}
