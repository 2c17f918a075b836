//! The store's gRPC interface.

use std::collections::{BTreeSet, HashSet};
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, stream};
use tokio::sync::broadcast::{self, error::RecvError};
use tonic::transport::server::Router;
use tonic::{Request, Response, Status};

use super::health::HealthService;
use super::proto::health::health_server::HealthServer;
use super::proto::inventory as pb;
use super::proto::inventory::inventory_server::{Inventory, InventoryServer};
use super::store::{InventoryStore, Level, Line, ReserveError, SetError, Taken};
use crate::product::valid_sku;
use crate::service::Shutdown;

const MAX_BATCH: usize = 500;
const MAX_SET: usize = 5000;
const MAX_LINES: usize = 100;
const MAX_KEY: usize = 128;

/// The gRPC server: inventory and health.
pub fn router(store: Arc<InventoryStore>, shutdown: Shutdown) -> Router {
    let health = HealthService { store: Arc::clone(&store), shutdown: shutdown.clone() };
    tonic::transport::Server::builder()
        .add_service(HealthServer::new(health))
        .add_service(InventoryServer::new(Stock { store, shutdown }))
}

/// The inventory service.
#[derive(Debug)]
pub struct Stock {
    store: Arc<InventoryStore>,
    shutdown: Shutdown,
}

impl From<Level> for pb::StockLevel {
    fn from(level: Level) -> Self {
        let Level { sku, on_hand, reserved, revision } = level;
        Self { sku, on_hand, reserved, available: on_hand - reserved, revision }
    }
}

impl From<ReserveError> for Status {
    fn from(error: ReserveError) -> Self {
        let message = error.to_string();
        match error {
            ReserveError::Unknown(_) | ReserveError::NoReservation(_) => Self::not_found(message),
            ReserveError::Short { .. } | ReserveError::Released(_) => Self::failed_precondition(message),
            ReserveError::OtherLines(_) => Self::already_exists(message),
            ReserveError::Sql(error) => broken(&error),
        }
    }
}

impl From<SetError> for Status {
    fn from(error: SetError) -> Self {
        match error {
            SetError::BelowReserved { .. } => Self::failed_precondition(error.to_string()),
            SetError::Sql(error) => broken(&error),
        }
    }
}

fn broken(error: &sqlx::Error) -> Status {
    tracing::error!(%error, "database request failed");
    Status::internal("the database could not answer; the service's log says why")
}

fn skus_of(skus: Vec<String>, max: usize) -> Result<Vec<String>, Status> {
    if skus.len() > max {
        return Err(Status::invalid_argument(format!("skus: at most {max}, not {}", skus.len())));
    }
    let mut seen = HashSet::new();
    Ok(skus.into_iter().filter(|sku| seen.insert(sku.clone())).collect())
}

fn key_of(key: String) -> Result<String, Status> {
    if (1..=MAX_KEY).contains(&key.chars().count()) {
        return Ok(key);
    }
    Err(Status::invalid_argument(format!("idempotency_key: must be 1 to {MAX_KEY} characters")))
}

fn lines_of(lines: impl ExactSizeIterator<Item = Line>, max: usize, least: u32) -> Result<Vec<Line>, Status> {
    if lines.len() == 0 || lines.len() > max {
        return Err(Status::invalid_argument(format!("lines: must be 1 to {max}, not {}", lines.len())));
    }
    let mut seen = BTreeSet::new();
    let mut checked = Vec::with_capacity(lines.len());
    for line in lines {
        let sku = &line.sku;
        if !valid_sku(sku) {
            return Err(Status::invalid_argument(format!("lines: {sku:?} is no SKU")));
        }
        if line.quantity < least {
            return Err(Status::invalid_argument(format!(
                "lines: quantity of {sku} must be at least {least}"
            )));
        }
        if !seen.insert(sku.clone()) {
            return Err(Status::invalid_argument(format!(
                "lines: {sku} is named twice; add its quantities up"
            )));
        }
        checked.push(line);
    }
    checked.sort();
    Ok(checked)
}

fn reservation(idempotency_key: String, taken: Taken) -> Response<pb::Reservation> {
    use pb::reservation::State;
    let state = if taken.released { State::Released } else { State::Held };
    let lines = taken.lines.into_iter().map(|Line { sku, quantity }| pb::ReservationLine { sku, quantity });
    let (state, lines) = (state.into(), lines.collect());
    Response::new(pb::Reservation { idempotency_key, state, lines, replayed: taken.replayed })
}

#[tonic::async_trait]
impl Inventory for Stock {
    async fn get_stock(
        &self,
        request: Request<pb::GetStockRequest>,
    ) -> Result<Response<pb::StockLevel>, Status> {
        let sku = request.into_inner().sku;
        let mut levels = self.store.levels(Some(std::slice::from_ref(&sku))).await.map_err(|e| broken(&e))?;
        let level = levels.pop().ok_or_else(|| Status::not_found(format!("{sku:?} is not stocked here")))?;
        Ok(Response::new(level.into()))
    }

    async fn batch_get_stock(
        &self,
        request: Request<pb::BatchGetStockRequest>,
    ) -> Result<Response<pb::BatchGetStockResponse>, Status> {
        let skus = skus_of(request.into_inner().skus, MAX_BATCH)?;
        let levels = self.store.levels(Some(&skus)).await.map_err(|e| broken(&e))?;
        let found: HashSet<&str> = levels.iter().map(|l| l.sku.as_str()).collect();
        let unknown_skus = skus.iter().filter(|s| !found.contains(s.as_str())).cloned().collect();
        let levels = levels.into_iter().map(Into::into).collect();
        Ok(Response::new(pb::BatchGetStockResponse { levels, unknown_skus }))
    }

    async fn set_stock(
        &self,
        request: Request<pb::SetStockRequest>,
    ) -> Result<Response<pb::SetStockResponse>, Status> {
        let lines = request.into_inner().lines.into_iter();
        let lines = lines_of(lines.map(|l| Line { sku: l.sku, quantity: l.on_hand }), MAX_SET, 0)?;
        let (created, updated, unchanged) = self.store.set(&lines).await?;
        Ok(Response::new(pb::SetStockResponse { created, updated, unchanged }))
    }

    async fn reserve(
        &self,
        request: Request<pb::ReserveRequest>,
    ) -> Result<Response<pb::Reservation>, Status> {
        let pb::ReserveRequest { idempotency_key, lines } = request.into_inner();
        let key = key_of(idempotency_key)?;
        let lines = lines.into_iter().map(|l| Line { sku: l.sku, quantity: l.quantity });
        let taken = self.store.reserve(&key, &lines_of(lines, MAX_LINES, 1)?).await?;
        Ok(reservation(key, taken))
    }

    async fn release(
        &self,
        request: Request<pb::ReleaseRequest>,
    ) -> Result<Response<pb::Reservation>, Status> {
        let key = key_of(request.into_inner().idempotency_key)?;
        let taken = self.store.release(&key).await?;
        Ok(reservation(key, taken))
    }

    type WatchStockStream = Pin<Box<dyn Stream<Item = Result<pb::StockUpdate, Status>> + Send>>;

    async fn watch_stock(
        &self,
        request: Request<pb::WatchStockRequest>,
    ) -> Result<Response<Self::WatchStockStream>, Status> {
        let skus = skus_of(request.into_inner().skus, MAX_BATCH)?;
        let watch = Watch {
            changes: self.store.changes(),
            store: Arc::clone(&self.store),
            shutdown: self.shutdown.clone(),
            skus: (!skus.is_empty()).then_some(skus),
            next: Next::Snapshot,
        };
        Ok(Response::new(Box::pin(stream::unfold(watch, |mut watch| async move {
            let update = watch.update().await?;
            Some((update, watch))
        }))))
    }
}

/// One reader's place in the stream of changes.
struct Watch {
    changes: broadcast::Receiver<Vec<Level>>,
    store: Arc<InventoryStore>,
    shutdown: Shutdown,
    skus: Option<Vec<String>>,
    next: Next,
}

enum Next {
    Snapshot,
    /// Changes of a later revision than this.
    ChangesAfter(u64),
    End,
}

impl Watch {
    async fn update(&mut self) -> Option<Result<pb::StockUpdate, Status>> {
        loop {
            let seen = match self.next {
                Next::End => return None,
                Next::Snapshot => return Some(self.snapshot().await),
                Next::ChangesAfter(seen) => seen,
            };
            let received = tokio::select! {
                received = self.changes.recv() => received,
                () = self.shutdown.clone().begun() => Err(RecvError::Closed),
            };
            match received {
                Ok(levels) => {
                    let wanted = |l: &Level| {
                        l.revision > seen && self.skus.as_ref().is_none_or(|skus| skus.contains(&l.sku))
                    };
                    let levels: Vec<_> = levels.into_iter().filter(wanted).map(Into::into).collect();
                    if !levels.is_empty() {
                        return Some(Ok(pb::StockUpdate { snapshot: false, levels }));
                    }
                }
                Err(RecvError::Lagged(_)) => self.next = Next::Snapshot,
                Err(RecvError::Closed) => {
                    self.next = Next::End;
                    return Some(Err(Status::unavailable("this instance stops; watch again")));
                }
            }
        }
    }

    async fn snapshot(&mut self) -> Result<pb::StockUpdate, Status> {
        match self.store.snapshot(self.skus.as_deref()).await {
            Ok((revision, levels)) => {
                self.next = Next::ChangesAfter(revision);
                Ok(pb::StockUpdate { snapshot: true, levels: levels.into_iter().map(Into::into).collect() })
            }
            Err(error) => {
                self.next = Next::End;
                Err(broken(&error))
            }
        }
    }
}
