//! The task of a shared connection: it carries the frames of all streams until the connection has ended.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::client::Connection;
use tokio::time::{Sleep, sleep};

use super::alive::Alive;
use super::counted::Counted;
use super::pings::Pings;
use super::pool::Room;
use crate::gather::Flusher;
use crate::http::payload::Payload;
use crate::http::received::Received;
use crate::http::windows::Windows;

/// So long the goodbye of a connection that nobody uses any more may take: a peer that does not read would hold it for as long
/// as it likes.
const GOODBYE: Duration = Duration::from_secs(1);

/// What it works with beside the connection.
pub(super) struct Task {
    pub(super) flusher: Flusher,
    pub(super) windows: Box<Windows>,
    pub(super) received: Rc<Received>,
    pub(super) pings: Rc<Pings>,
    pub(super) alive: Rc<Alive>,
    /// Set when it has ended.
    pub(super) ended: Rc<Cell<bool>>,
    /// Nobody will use the connection any more.
    pub(super) left: Rc<Cell<bool>>,
    /// Who is told when the connection takes more streams than before.
    pub(super) room: Room,
}

impl Task {
    /// Runs until the connection has ended. Each stream learns of that by itself.
    pub(super) async fn carry(mut self, mut connection: Connection<Counted, Payload>) {
        let mut ping_pong = connection.ping_pong().expect("asked for once");
        let mut most = connection.max_concurrent_send_streams();
        let mut goodbye = None;
        let mut frames = 0;
        let done = poll_fn(|cx| {
            let answered = self.pings.turn(cx, &mut ping_pong);
            if answered {
                // What has come until now may have been written before the peer saw the PING.
                frames = self.received.came().frames;
                if self.alive.answered() {
                    self.room.call();
                }
            }
            if self.windows.turn(answered, !self.pings.is_under_way(), &mut connection) {
                self.pings.ask();
                self.alive.is_asked_besides();
            }
            let done = Pin::new(&mut connection).poll(cx);
            self.windows.make_room(&mut connection);
            self.received.flow().watch(cx);
            if let Some(updates) = self.received.flow().updates() {
                self.flusher.put(&updates);
            }
            self.pings.moved();
            if !self.pings.is_under_way() {
                let before = std::mem::replace(&mut frames, self.received.came().frames);
                if before < frames {
                    self.alive.spoke();
                }
            }
            let before = std::mem::replace(&mut most, connection.max_concurrent_send_streams());
            if before < most {
                self.room.call();
            }
            if done.is_pending()
                && let Poll::Ready(Err(error)) = self.flusher.poll_flush(cx, false)
            {
                tracing::debug!(%error, "upstream HTTP/2 connection broken");
                return Poll::Ready(Ok(()));
            }
            if done.is_pending() && self.is_late(cx, &mut goodbye) {
                tracing::debug!("upstream HTTP/2 connection let go: its peer does not read the goodbye");
                return Poll::Ready(Ok(()));
            }
            done
        });
        if let Err(error) = done.await {
            tracing::debug!(%error, "upstream HTTP/2 connection ended");
        }
        self.ended.set(true);
        self.pings.over();
        self.room.call();
    }

    /// Whether the goodbye takes too long.
    fn is_late(&self, cx: &mut Context<'_>, goodbye: &mut Option<Pin<Box<Sleep>>>) -> bool {
        self.left.get()
            && goodbye.get_or_insert_with(|| Box::pin(sleep(GOODBYE))).as_mut().poll(cx).is_ready()
    }
}
