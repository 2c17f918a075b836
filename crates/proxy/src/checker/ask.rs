//! One question to one endpoint, on a connection of its own that is made as a request's would be: plain with the PROXY
//! header where the service wants it, or in the mesh by mutual TLS to the proxy beside the application, which passes the
//! question on. So an answer says that the whole way works, the application included.

use std::net::SocketAddr;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use meshwork_base::SpiffeId;
use meshwork_decision::{Cluster, Endpoint, HealthProbe, Transport};
use meshwork_probe::{Answered, ProbeError, USER_AGENT};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::engine::Shared;
use crate::error::Failure;
use crate::proxy_protocol::Client;
use crate::replay::Replayed;
use crate::upstream::connect::announcement;
use crate::upstream::mesh;

/// Asks; the error says in words for people why the endpoint does not serve.
pub(super) async fn ask(
    cluster: &Cluster,
    endpoint: &Endpoint,
    probe: &HealthProbe,
    shared: &Shared,
) -> Result<(), String> {
    let authority = authority(cluster);
    match probe {
        HealthProbe::Http { method, path, host, .. } => {
            let host = host.as_deref().unwrap_or(&authority);
            let request = Request::builder().method(&**method).header("user-agent", USER_AGENT);
            let answer = http(cluster, endpoint, request, (host, path), shared).await?;
            let expected = cluster.health_check.as_ref().is_some_and(|c| c.expects(answer.status.as_u16()));
            if expected { Ok(()) } else { Err(format!("HTTP {method} {path}: {}", answer.status)) }
        }
        HealthProbe::Grpc { service } => {
            let told = |error| format!("gRPC check of {}: {error}", endpoint.address());
            match &endpoint.transport {
                Transport::Plaintext => {
                    let tcp = plain(cluster, endpoint).await?;
                    meshwork_probe::grpc(tcp, &authority, service).await.map_err(told)
                }
                Transport::Mesh { http, spiffe_id, .. } => {
                    let io = secured(cluster, *http, spiffe_id, shared).await?;
                    meshwork_probe::grpc(io, &authority, service).await.map_err(told)
                }
            }
        }
        HealthProbe::Tcp { send, receive } => {
            let told = |error| format!("TCP check of {}: {error}", endpoint.address());
            match &endpoint.transport {
                Transport::Plaintext => {
                    let tcp = plain(cluster, endpoint).await?;
                    meshwork_probe::tcp(tcp, send, receive).await.map_err(told)
                }
                Transport::Mesh { hbone: Some(hbone), spiffe_id, .. } => {
                    let io = secured(cluster, *hbone, spiffe_id, shared).await?;
                    let authority = format!("{authority}:{}", cluster.key.port);
                    meshwork_probe::tunnelled(io, &authority, send, receive).await.map_err(told)
                }
                Transport::Mesh { hbone: None, .. } => {
                    Err("the proxy beside it takes no tunnels (HBONE), so a `tcp` check does not get through; write `http` or `grpc`".to_owned())
                }
            }
        }
    }
}

/// NAME.NAMESPACE of a service.
fn authority(cluster: &Cluster) -> String {
    let (namespace, name) = cluster.key.service.split_once('/').unwrap_or(("default", &cluster.key.service));
    format!("{name}.{namespace}")
}

async fn http(
    cluster: &Cluster,
    endpoint: &Endpoint,
    request: http::request::Builder,
    (host, path): (&str, &str),
    shared: &Shared,
) -> Result<Answered, String> {
    let told = |error: ProbeError| format!("HTTP check of {}: {error}", endpoint.address());
    let uri = |scheme| http::Uri::builder().scheme(scheme).authority(host).path_and_query(path).build();
    let answer = match &endpoint.transport {
        Transport::Plaintext if cluster.protocol.is_http2() => {
            let uri = uri("http").map_err(|error| told(error.into()))?;
            let request = request.uri(uri).body(Bytes::new()).map_err(|error| told(error.into()))?;
            meshwork_probe::http2(plain(cluster, endpoint).await?, request).await
        }
        Transport::Plaintext => {
            let request = request.uri(path).header("host", host).body(Full::default());
            let request = request.map_err(|error| told(error.into()))?;
            meshwork_probe::http1(plain(cluster, endpoint).await?, request).await
        }
        Transport::Mesh { http, spiffe_id, .. } => {
            let uri = uri("http").map_err(|error| told(error.into()))?;
            let request = request.uri(uri).body(Bytes::new()).map_err(|error| told(error.into()))?;
            meshwork_probe::http2(secured(cluster, *http, spiffe_id, shared).await?, request).await
        }
    };
    answer.map_err(told)
}

/// Without a timeout of its own: the check has one for everything.
async fn dial(address: SocketAddr) -> Result<TcpStream, String> {
    let tcp = TcpStream::connect(address).await.map_err(|error| format!("connect to {address}: {error}"))?;
    tcp.set_nodelay(true).map_err(|error| format!("connect to {address}: {error}"))?;
    Ok(tcp)
}

/// A connection to the application; we are for ourselves, where it wants to know.
async fn plain(cluster: &Cluster, endpoint: &Endpoint) -> Result<TcpStream, String> {
    let address = endpoint.address();
    let mut tcp = dial(address).await?;
    if let Some(version) = cluster.proxy_protocol {
        let told = |error: std::io::Error| format!("connect to {address}: {error}");
        let client = Client { source: tcp.local_addr().map_err(told)?, destination: address };
        tcp.write_all(&announcement(version, &client)).await.map_err(told)?;
    }
    Ok(tcp)
}

/// A connection to the proxy beside the application.
async fn secured(
    cluster: &Cluster,
    address: SocketAddr,
    id: &SpiffeId,
    shared: &Shared,
) -> Result<Replayed, String> {
    let tcp = dial(address).await?;
    let identity = shared.mesh.identity.as_ref();
    let told = |failure: Failure| {
        let detail = failure.detail.as_deref().unwrap_or_default();
        format!("{}: {address}: {detail}", failure.cause)
    };
    mesh::secure(identity, &cluster.key, id, tcp).await.map(|secured| secured.io).map_err(told)
}
