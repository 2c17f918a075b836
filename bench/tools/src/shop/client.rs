//! HTTP/1.1 requests to one address, on connections that are kept.

use std::cell::RefCell;
use std::error::Error;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

pub struct Client {
    address: String,
    idle: RefCell<Vec<SendRequest<Empty<Bytes>>>>,
}

impl Client {
    pub fn new(address: String) -> Self {
        Self { address, idle: RefCell::default() }
    }

    /// GET; `trace` is the value of `traceparent`, where there is one.
    pub async fn get(
        &self,
        host: &str,
        path: &str,
        trace: Option<&str>,
    ) -> Result<StatusCode, Box<dyn Error>> {
        let mut request = Request::get(path).header("host", host);
        if let Some(trace) = trace {
            request = request.header("traceparent", trace);
        }
        let mut sender = self.sender().await?;
        let response = sender.send_request(request.body(Empty::new())?).await?;
        let status = response.status();
        response.into_body().collect().await?;
        self.idle.borrow_mut().push(sender);
        Ok(status)
    }

    async fn sender(&self) -> Result<SendRequest<Empty<Bytes>>, Box<dyn Error>> {
        // What is popped is let go before anything is awaited.
        while let Some(mut sender) = { self.idle.borrow_mut().pop() } {
            if sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::task::spawn_local(connection);
        Ok(sender)
    }
}
