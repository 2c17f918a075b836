//! One instance of a service of the model. It is an application beside a sidecar: HOST and PORT say where it listens,
//! MESHWORK_OUTBOUND where its calls go.
//!
//! Its path is the operation. `/control/fault/on` and `/off` give it the fault and take it away, `/control/figures`
//! tells how long its calls have taken since it was last asked, by callee.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::env;
use std::error::Error;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::LocalSet;

use super::client::Client;
use super::model::Model;
use crate::figures::Latencies;

#[derive(Default)]
struct Figures {
    latencies: Latencies,
    failed: usize,
}

struct Service {
    name: String,
    model: Model,
    outbound: Client,
    faulty: Cell<bool>,
    figures: RefCell<BTreeMap<String, Figures>>,
}

pub fn run(model: &str, name: &str) -> Result<(), Box<dyn Error>> {
    let model: Model = serde_json::from_slice(&std::fs::read(model)?)?;
    if !model.contains_key(name) {
        return Err(format!("the model has no service {name}").into());
    }
    let outbound = Client::new(env::var("MESHWORK_OUTBOUND")?.trim_start_matches("http://").to_owned());
    let at = format!("{}:{}", env::var("HOST")?, env::var("PORT")?);
    let service = Rc::new(Service {
        name: name.to_owned(),
        model,
        outbound,
        faulty: Cell::new(false),
        figures: RefCell::default(),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind(at).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let service = Rc::clone(&service);
            let answer = hyper::service::service_fn(move |request| {
                let service = Rc::clone(&service);
                async move { Ok::<_, Infallible>(service.answer(request).await) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new());
            tokio::task::spawn_local(builder.serve_connection(TokioIo::new(stream), answer));
        }
    })
}

impl Service {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (status, text) = match request.uri().path().trim_start_matches('/') {
            "control/fault/on" => (StatusCode::OK, self.become_faulty(true)),
            "control/fault/off" => (StatusCode::OK, self.become_faulty(false)),
            "control/figures" => (StatusCode::OK, self.figures()),
            operation => {
                let trace = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
                match self.execute(operation, trace).await {
                    Ok(()) => (StatusCode::OK, "done\n".to_owned()),
                    Err(why) => (StatusCode::BAD_GATEWAY, format!("{why}\n")),
                }
            }
        };
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response
    }

    fn become_faulty(&self, faulty: bool) -> String {
        self.faulty.set(faulty);
        format!("faulty: {faulty}\n")
    }

    fn figures(&self) -> String {
        let figures = self.figures.take().into_iter().map(|(callee, mut figures)| {
            let (calls, failed) = (figures.latencies.len(), figures.failed);
            let members = figures.latencies.members();
            format!("\"{callee}\":{{\"calls\":{calls},\"failed\":{failed},{members}}}")
        });
        format!("{{{}}}\n", figures.collect::<Vec<_>>().join(","))
    }

    /// Does what an operation does, one thing after the other.
    fn execute<'a>(
        &'a self,
        operation: &'a str,
        trace: Option<&'a str>,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + 'a>> {
        Box::pin(async move {
            let found = self.model[&self.name].get(operation);
            let found = found.ok_or_else(|| format!("{} has no operation {operation}", self.name))?;
            tokio::time::sleep(found.takes(self.faulty.get())).await;
            for call in &found.calls {
                for _ in 0..call.times() {
                    if call.service == self.name {
                        self.execute(&call.operation, trace).await?;
                    } else {
                        self.call(&call.service, &call.operation, trace).await?;
                    }
                }
            }
            Ok(())
        })
    }

    async fn call(&self, service: &str, operation: &str, trace: Option<&str>) -> Result<(), String> {
        let started = Instant::now();
        let answered = self.outbound.get(service, &format!("/{operation}"), trace).await;
        let mut figures = self.figures.borrow_mut();
        let figures = figures.entry(service.to_owned()).or_default();
        figures.latencies.add(started.elapsed());
        let result = match answered {
            Ok(StatusCode::OK) => Ok(()),
            Ok(status) => Err(format!("{service} answered {status}")),
            Err(error) => Err(format!("{service}: {error}")),
        };
        figures.failed += usize::from(result.is_err());
        result
    }
}
