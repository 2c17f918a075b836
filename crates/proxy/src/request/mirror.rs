//! Copies of a request: which there are, drawn for each by itself, and their beginning. Each is a task of its own
//! (`copy.rs`) that the original neither waits for nor hears of; what both share is the body, as far as the copy keeps up
//! (`tee.rs`).
//!
//! *No copy of a copy.* A copy says so by `x-meshwork-mirror`, and what an application calls for its sake says so too
//! (`kin.rs`). It is not copied again, so no ring of services turns for ever. Gateways do not believe it (`filters.rs`): whoever
//! calls would have its requests kept from the other service, and applications take them for copies.

mod copy;

use std::sync::Arc;
use std::time::Duration;

use meshwork_base::Tick;
use meshwork_decision::{Cluster, Mirror};
use meshwork_http1::{KnownName, RequestHead};
use meshwork_telemetry::{Copied, SpanId};

use super::aside::OwnHead;
use super::attempt::announced;
use super::body::RequestBody;
use super::journey::Journey;
use super::kin;
use super::route::{Seen, Target, Way};
use super::tee::Tee;
use crate::downstream::connection::Conn;
use crate::observe::MARK;
use crate::upstream::Head;
use copy::Copy;

/// Copies that one worker has under way at most.
pub(crate) const MOST: usize = 128;

/// Begins the copies of a request that is about to be sent. `end`: of its time; `overheard`: what of a caller's deadline that is not
/// believed here endpoints hear.
#[inline]
pub(crate) fn begin(
    conn: &Conn,
    (way, target): (&Way<'_>, &Target<'_>),
    (head, sent): (&RequestHead, &Head<'_>),
    (end, overheard): (Option<Tick>, Option<Duration>),
    body: &mut RequestBody<'_>,
    journey: &mut Journey<'_>,
) {
    let (Way::Rule(matched), Target::Service { backend, .. }) = (way, target) else { return };
    let of_rule = &matched.rule().mirrors;
    if of_rule.is_empty() && backend.mirrors.is_empty() {
        return;
    }
    let mirrors = of_rule.iter().chain(&backend.mirrors);
    let request = Original { conn, target, head, sent, end, overheard };
    copied(&request, mirrors, body, journey);
}

struct Original<'a> {
    conn: &'a Conn,
    target: &'a Target<'a>,
    head: &'a RequestHead,
    sent: &'a Head<'a>,
    end: Option<Tick>,
    overheard: Option<Duration>,
}

#[cold]
fn copied<'m>(
    request: &Original<'_>,
    mirrors: impl Iterator<Item = &'m Mirror>,
    body: &mut RequestBody<'_>,
    journey: &mut Journey<'_>,
) {
    let is_copy = kin::is_of_copy(request.conn, &request.head.fields);
    let mut tee = Tee::default();
    for mirror in mirrors {
        let skipped = match &mirror.cluster {
            _ if is_copy => Some("it is a copy itself"),
            // What follows a change of protocol is nobody's to repeat.
            _ if request.sent.upgrade.is_some() => Some("it offers to change the protocol"),
            None => Some("the service has not been delivered"),
            Some(_) if !mirror.share.happens(&mut *request.conn.worker.rng.borrow_mut()) => {
                Some("it is not among those that are copied")
            }
            Some(_) => None,
        };
        if let Some(told) = journey.told() {
            let (outcome, why) = match skipped {
                Some(why) => ("skipped", why.to_owned()),
                None => ("noted", mirror.told()),
            };
            told.tell("mirror", mirror.key.to_string(), outcome, why);
        }
        if let (None, Some(cluster)) = (skipped, &mirror.cluster) {
            request.copy(cluster, body, &mut tee, journey);
        }
    }
    body.tee(tee);
}

impl Original<'_> {
    fn copy(&self, cluster: &Arc<Cluster>, body: &RequestBody<'_>, tee: &mut Tee, journey: &mut Journey<'_>) {
        let worker = &self.conn.worker;
        let Some(open) = worker.mirroring(MOST) else {
            return worker.mirrored(cluster, "refused");
        };
        let Some((head, traced)) = self.own_head(cluster, journey) else {
            return worker.mirrored(cluster, "refused");
        };
        let Target::Service { policy, .. } = self.target else { return };
        let hash = cluster.hashing.as_ref().and_then(|hashing| {
            let rng = &mut *worker.rng.borrow_mut();
            hashing.key(&Seen::new(self.conn, self.head), Some(self.conn.peer.ip()), rng).hash
        });
        journey.record.mirrors += 1;
        let copy = Copy {
            tap: (!body.is_empty()).then(|| tee.tap()),
            head,
            traced,
            is_grpc: journey.is_grpc(),
            hash,
            end: self.end,
            overheard: self.overheard,
            timeouts: policy.timeouts(Some(cluster)),
            announcement: announced(self.conn, cluster),
            cluster: Arc::clone(cluster),
            worker: std::rc::Rc::clone(worker),
            open,
        };
        tokio::task::spawn_local(copy.run());
    }

    /// The head as it is, but for what says where in a trace it stands and that it is a copy; and the copy's own span, of
    /// a request that is traced. None: it has no room.
    fn own_head(&self, cluster: &Cluster, journey: &Journey<'_>) -> Option<(OwnHead, Option<Box<Copied>>)> {
        let mut head = OwnHead::of(self.sent);
        let fields = &mut head.fields;
        fields.remove(MARK);
        fields.set_known(KnownName::XMeshworkMirror, "1").ok()?;
        let in_mesh = cluster.endpoints().all().iter().any(|endpoint| endpoint.spiffe_id().is_some());
        if let (true, Some(end)) = (in_mesh, self.end) {
            let rest = end.since(self.conn.worker.now()).as_millis().max(1);
            fields.set_known(KnownName::XEnvoyExpectedRqTimeoutMs, rest.to_string()).ok()?;
        }
        let span = SpanId::random(&mut *self.conn.worker.rng.borrow_mut());
        let traced = journey.copied(span, cluster);
        if let Some(traced) = &traced {
            fields.set_known(KnownName::TraceParent, traced.context.traceparent()).ok()?;
        }
        Some((head, traced))
    }
}
