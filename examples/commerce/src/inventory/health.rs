//! `grpc.health.v1`: serving until the process is told to stop.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt, stream};
use tonic::{Request, Response, Status};

use super::proto::health::health_check_response::ServingStatus;
use super::proto::health::health_server::Health;
use super::proto::health::{HealthCheckRequest, HealthCheckResponse};
use super::store::InventoryStore;
use crate::service::Shutdown;

/// The services that can be asked for; the empty name is the whole server.
const SERVICES: [&str; 3] = ["", "commerce.inventory.v1.Inventory", "grpc.health.v1.Health"];

pub(super) struct HealthService {
    pub(super) store: Arc<InventoryStore>,
    pub(super) shutdown: Shutdown,
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        if !SERVICES.contains(&service.as_str()) {
            return Err(Status::not_found(format!("there is no service {service:?} here")));
        }
        let status = match self.store.levels(Some(&[String::new()])).await {
            Ok(_) if !self.shutdown.has_begun() => ServingStatus::Serving,
            Ok(_) => ServingStatus::NotServing,
            Err(error) => {
                tracing::error!(%error, "the database does not answer");
                ServingStatus::NotServing
            }
        };
        Ok(Response::new(answer(status)))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        // The protocol wants an unknown service to be told and watched on, because it may be added; here none ever is.
        let known = SERVICES.contains(&request.into_inner().service.as_str());
        let first = if known { ServingStatus::Serving } else { ServingStatus::ServiceUnknown };
        let shutdown = self.shutdown.clone();
        let last = stream::once(async move {
            shutdown.begun().await;
            known.then(|| Ok(answer(ServingStatus::NotServing)))
        })
        .filter_map(std::future::ready);
        Ok(Response::new(Box::pin(stream::iter([Ok(answer(first))]).chain(last))))
    }
}
