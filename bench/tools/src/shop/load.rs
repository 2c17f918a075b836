//! Requests at a fixed rate, each with a trace of its own, so that the slow ones can be asked about afterwards.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::error::Error;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::task::{JoinSet, LocalSet};

use super::client::Client;
use crate::figures::Latencies;

/// How many of the slowest are named.
const NAMED: usize = 20;

pub struct Plan {
    pub address: String,
    pub host: String,
    pub path: String,
    /// Requests per second.
    pub rate: f64,
    pub seconds: f64,
}

#[derive(Default)]
struct Done {
    latencies: Latencies,
    /// By status, or `error`.
    statuses: BTreeMap<String, usize>,
    slowest: Vec<(u128, String)>,
}

pub fn run(plan: Plan) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, load(Rc::new(plan)))
}

async fn load(plan: Rc<Plan>) -> Result<(), Box<dyn Error>> {
    let client = Rc::new(Client::new(plan.address.clone()));
    let done = Rc::new(RefCell::new(Done::default()));
    let mut running = JoinSet::new();
    let start = Instant::now();
    for number in 0..(plan.rate * plan.seconds) as u32 {
        let due = start + Duration::from_secs_f64(f64::from(number) / plan.rate);
        tokio::time::sleep_until(due.into()).await;
        let (plan, client, done) = (Rc::clone(&plan), Rc::clone(&client), Rc::clone(&done));
        running.spawn_local(async move {
            let trace = format!("{:032x}", fastrand::u128(1..));
            let parent = format!("00-{trace}-{:016x}-01", fastrand::u64(1..));
            let answered = client.get(&plan.host, &plan.path, Some(&parent)).await;
            // From when it was due: a load that falls behind flatters nobody.
            let took = due.elapsed();
            let mut done = done.borrow_mut();
            done.latencies.add(took);
            let status = answered.map_or_else(|_| "error".to_owned(), |status| status.as_str().to_owned());
            *done.statuses.entry(status).or_default() += 1;
            done.slowest.push((took.as_micros(), trace));
        });
    }
    while let Some(joined) = running.join_next().await {
        joined?;
    }
    let mut done = done.take();
    done.slowest.sort_unstable_by(|one, other| other.cmp(one));
    done.slowest.truncate(NAMED);
    let (requests, members) = (done.latencies.len(), done.latencies.members());
    let statuses = serde_json::to_string(&done.statuses)?;
    let traces: Vec<_> = done.slowest.iter().map(|(_, trace)| trace).collect();
    let slowest = serde_json::to_string(&traces)?;
    println!("RESULT {{\"requests\":{requests},\"statuses\":{statuses},\"slowest\":{slowest},{members}}}");
    Ok(())
}
