//! The way of spans to a collector, by OTLP over gRPC.
//!
//! ```text
//! worker: Traced + Record ──bounded queue──▶ one task: spans, batches ──OTLP──▶ collector
//! ```
//!
//! A request waits for nothing of this: what the queue does not take is dropped and counted. The exporter is
//! OpenTelemetry's; it repeats what a collector may take later, for ten seconds at most.

use std::time::Duration;

use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::EnvResourceDetector;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::sync::{mpsc, oneshot};

use super::sampler::Sampler;
use super::spans;
use super::traced::{Copied, Traced};
use crate::inventory;
use crate::metrics::{Counter, MetricsRegistry};
use crate::record::Record;

/// Requests that wait to be sent, as OpenTelemetry's batch processors have it.
const QUEUE: usize = 2048;
/// Requests that are sent together.
const BATCH: usize = 512;
/// How long a request waits at most for others to go with it.
const AGE: Duration = Duration::from_secs(1);

/// Why spans cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// Where to.
    #[error("{address:?} is no collector's address: {why}; write it like http://127.0.0.1:4317")]
    Endpoint {
        /// As given.
        address: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The exporter.
    #[error(
        "spans cannot be sent to {address}: {source}; correct the address and the variables OTEL_EXPORTER_OTLP_*"
    )]
    Exporter {
        /// Where to.
        address: String,
        /// What it says.
        source: ExporterBuildError,
    },
}

/// Who we are, as OpenTelemetry's resources say it; `OTEL_RESOURCE_ATTRIBUTES` may say otherwise.
#[derive(Clone, Debug, Default)]
pub struct TraceResource {
    /// `service.name`.
    pub service: String,
    /// `service.name` that stands above all else.
    pub named: Option<String>,
    /// `service.namespace`.
    pub namespace: String,
    /// `service.instance.id`.
    pub instance: String,
    /// `meshwork.role`.
    pub role: &'static str,
}

impl TraceResource {
    fn build(&self) -> Resource {
        let pairs = [
            ("service.name", self.service.as_str()),
            ("service.namespace", &self.namespace),
            ("service.instance.id", &self.instance),
            ("service.version", env!("CARGO_PKG_VERSION")),
            ("meshwork.role", self.role),
        ];
        let told = pairs.into_iter().filter(|(_, text)| !text.is_empty());
        let builder = Resource::builder_empty()
            .with_attributes(told.map(|(key, text)| KeyValue::new(key, text.to_owned())))
            .with_detector(Box::new(EnvResourceDetector::new()));
        match &self.named {
            Some(name) => builder.with_service_name(name.clone()).build(),
            None => builder.build(),
        }
    }
}

enum Message {
    Finished(Box<(Traced, Record)>),
    Copied(Box<Copied>),
    Flush(oneshot::Sender<()>),
}

/// Takes what is traced. Cheap to clone; the last one's end ends the exporter.
#[derive(Clone, Debug)]
pub struct Tracer {
    sampler: Sampler,
    queue: mpsc::Sender<Message>,
    dropped: Counter,
}

impl Tracer {
    /// Starts to export to a collector, which need not be there yet. Called inside a runtime, which carries the task.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn start(
        address: &str,
        sampler: Sampler,
        resource: &TraceResource,
        metrics: &MetricsRegistry,
    ) -> Result<Self, TraceError> {
        check(address)?;
        let built = SpanExporter::builder().with_tonic().with_endpoint(address).build();
        let mut exporter =
            built.map_err(|source| TraceError::Exporter { address: address.to_owned(), source })?;
        exporter.set_resource(&resource.build());
        let (queue, inbox) = mpsc::channel(QUEUE);
        let dropped = |cause| metrics.counter(&inventory::SPANS_DROPPED, &[cause]);
        let task = Task {
            inbox,
            exporter,
            scope: InstrumentationScope::builder("meshwork").with_version(env!("CARGO_PKG_VERSION")).build(),
            exported: metrics.counter(&inventory::SPANS_EXPORTED, &[]),
            failed: dropped("export"),
        };
        tokio::spawn(task.run(address.to_owned()));
        Ok(Self { sampler, queue, dropped: dropped("queue_full") })
    }

    /// Which traces are recorded.
    #[must_use]
    pub const fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// Takes a finished request.
    pub fn finished(&self, traced: Traced, record: &Record) {
        match self.queue.try_reserve() {
            Ok(place) => place.send(Message::Finished(Box::new((traced, record.clone())))),
            Err(_) => self.dropped.add(1 + traced.attempts.len() as u64),
        }
    }

    /// Takes a copy of a request that is over.
    pub fn copied(&self, copied: Copied) {
        match self.queue.try_reserve() {
            Ok(place) => place.send(Message::Copied(Box::new(copied))),
            Err(_) => self.dropped.add(1),
        }
    }

    /// Waits until what was taken is sent, or patience ends.
    pub async fn flush(&self, patience: Duration) {
        let sent = async {
            let (done, wait) = oneshot::channel();
            if self.queue.send(Message::Flush(done)).await.is_ok() {
                // An error means that the task is gone, and with it what it had.
                drop(wait.await);
            }
        };
        if tokio::time::timeout(patience, sent).await.is_err() {
            tracing::warn!("the last spans are lost: the collector did not take them in time");
        }
    }
}

fn check(address: &str) -> Result<(), TraceError> {
    let wrong = |why| Err(TraceError::Endpoint { address: address.to_owned(), why });
    let Ok(uri) = address.parse::<http::Uri>() else { return wrong("it is no URL") };
    match (uri.scheme_str(), uri.host()) {
        (Some("http"), Some(host)) if !host.is_empty() => Ok(()),
        (Some("https"), _) => wrong("spans are sent without TLS, to a collector of this machine or network"),
        _ => wrong("it has no http:// and host"),
    }
}

struct Task {
    inbox: mpsc::Receiver<Message>,
    exporter: SpanExporter,
    scope: InstrumentationScope,
    exported: Counter,
    failed: Counter,
}

#[derive(Default)]
struct Batch {
    spans: Vec<SpanData>,
    flushed: Vec<oneshot::Sender<()>>,
}

impl Task {
    async fn run(mut self, collector: String) {
        let mut said = false;
        while let Some(Batch { spans, flushed }) = self.gather().await {
            let count = spans.len() as u64;
            if count > 0 {
                match self.exporter.export(spans).await {
                    Ok(()) => {
                        self.exported.add(count);
                        said = false;
                    }
                    Err(error) => {
                        self.failed.add(count);
                        if !std::mem::replace(&mut said, true) {
                            tracing::warn!(%error, collector, "spans are lost: the collector does not take them");
                        }
                    }
                }
            }
            for done in flushed {
                // Who waited may have lost patience.
                let _ = done.send(());
            }
        }
    }

    /// The next batch: full, or as old as it may be; nothing when no tracer is left.
    async fn gather(&mut self) -> Option<Batch> {
        let mut batch = Batch::default();
        let first = self.inbox.recv().await?;
        self.take(first, &mut batch);
        let end = tokio::time::sleep(AGE);
        tokio::pin!(end);
        for _ in 1..BATCH {
            if !batch.flushed.is_empty() {
                break;
            }
            let message = tokio::select! {
                message = self.inbox.recv() => message,
                () = &mut end => None,
            };
            let Some(message) = message else { break };
            self.take(message, &mut batch);
        }
        Some(batch)
    }

    fn take(&self, message: Message, batch: &mut Batch) {
        match message {
            Message::Finished(request) => {
                batch.spans.extend(spans::of(&request.0, &request.1, &self.scope));
            }
            Message::Copied(copied) => batch.spans.push(spans::of_copy(&copied, &self.scope)),
            Message::Flush(done) => batch.flushed.push(done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collectors_address_is_a_url_that_we_can_speak_to() {
        for good in ["http://127.0.0.1:4317", "http://collector:4317/", "http://[::1]:4317"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("", "http://127.0.0.1:4317"),
            ("127.0.0.1:4317", "write it like"),
            ("collector", "it has no http://"),
            ("https://collector:4317", "without TLS"),
            ("http://", "collector's address"),
            ("grpc://collector:4317", "it has no http://"),
        ] {
            let error = check(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad:?}: {error}");
        }
    }

    #[tokio::test]
    async fn what_no_collector_takes_is_counted_and_nobody_waits_for_it() {
        let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", nobody.local_addr().unwrap());
        let metrics = MetricsRegistry::default();
        let resource = TraceResource::default();
        let tracer = Tracer::start(&address, Sampler::default(), &resource, &metrics).unwrap();
        let mut rng = meshwork_base::SeededRng::new(1);
        let mut finish = || {
            let trace = super::super::TraceContext::begin(&mut rng);
            tracer.finished(Traced::begin(&trace, None, String::new(), false, &mut rng), &Record::default());
        };
        // Nothing yields in between: the task does not run.
        for _ in 0..QUEUE + 5 {
            finish();
        }
        let text = metrics.render(crate::metrics::Format::Prometheus);
        assert!(text.contains("meshwork_spans_dropped_total{cause=\"queue_full\"} 5"), "{text}");
        tracer.flush(Duration::from_millis(10)).await;
    }
}
