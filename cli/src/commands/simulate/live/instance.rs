//! An instance: an application beside a sidecar that registers it, and what happens to both.

use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::{Clock, Tick};
use meshwork_decision::simulator::{Instance as Plan, Phase, Scenario, State};
use tokio::time::sleep;

use super::LiveError;
use super::mesh::Mesh;
use super::process::Process;
use super::told::{FLEET, in_zone};
use crate::up::plan::{Task, words};

/// See the module's text.
pub(super) struct Instance {
    plan: Plan,
    task: Task,
    data_dir: PathBuf,
    taken: Rc<Cell<u64>>,
    process: Option<Process>,
    is_stopped: bool,
}

impl Instance {
    /// The `number`th of the scenario, which runs if it is there from the beginning.
    pub(super) fn start(mesh: &Mesh, scenario: &Scenario, number: usize) -> Result<Self, LiveError> {
        let plan = scenario.instances[number].clone();
        let zone = (scenario.zones > 0).then_some(plan.zone);
        let flags = [words(&["--weight", &plan.weight.to_string()]), in_zone(zone)].concat();
        let task = mesh.beside(scenario.clients + number, FLEET, number, flags)?;
        let (data_dir, taken) = (mesh.data_dir().to_owned(), Rc::new(Cell::new(0)));
        let mut instance = Self { plan, task, data_dir, taken, process: None, is_stopped: false };
        if instance.plan.joins.is_zero() {
            instance.run()?;
        }
        Ok(instance)
    }

    /// Waits until it can be called, if it is there.
    pub(super) async fn ready(&mut self) -> Result<(), LiveError> {
        match &mut self.process {
            Some(process) => process.ready().await,
            None => Ok(()),
        }
    }

    /// How many requests its application has taken.
    pub(super) fn taken(&self) -> Rc<Cell<u64>> {
        Rc::clone(&self.taken)
    }

    /// Goes through its states from now on; ends with an error alone.
    pub(super) async fn live(mut self, clock: Arc<dyn Clock>, began: Tick) -> LiveError {
        for (at, state) in turns(&self.plan) {
            tokio::select! {
                error = self.ended() => return error,
                () = sleep(began.after(at).since(clock.now())) => {}
            }
            if let Err(error) = self.turn(state).await {
                return error;
            }
        }
        self.ended().await
    }

    /// Its process is killed, or stands still as on a host that is gone; else the application is told what to do.
    async fn turn(&mut self, state: State) -> Result<(), LiveError> {
        if self.is_stopped && state == State::Lost {
            return Ok(());
        }
        if (self.is_stopped || state == State::Away)
            && let Some(process) = self.process.take()
        {
            // Whoever comes back knows nothing of the connections that it had.
            process.kill().await?;
            self.is_stopped = false;
        }
        match (state, &mut self.process) {
            (State::Away, _) => Ok(()),
            (State::Lost, Some(process)) => {
                process.stop();
                self.is_stopped = true;
                Ok(())
            }
            (_, Some(process)) => process.tell(state).await,
            (_, None) => self.run()?.tell(state).await,
        }
    }

    fn run(&mut self) -> Result<&mut Process, LiveError> {
        let process = Process::start(&self.task, &self.data_dir, &self.taken)?;
        Ok(self.process.insert(process))
    }

    /// Waits for an end that is no part of the scenario.
    async fn ended(&mut self) -> LiveError {
        match &mut self.process {
            Some(process) => process.ended().await,
            None => std::future::pending().await,
        }
    }
}

/// What happens to it, and when; what would have before it joins does then.
fn turns(plan: &Plan) -> Vec<(Duration, State)> {
    let (before, after): (Vec<_>, Vec<_>) = plan.phases.iter().partition(|phase| phase.at < plan.joins);
    let state = before.last().map_or(State::Serving(1.0), |phase: &&Phase| phase.state);
    let joins = (!plan.joins.is_zero()).then_some((plan.joins, state));
    joins.into_iter().chain(after.iter().map(|phase| (phase.at, phase.state))).collect()
}

/// The first state in which its host would have to fall silent without a process that could: it has crashed or not joined.
pub(super) fn cannot(plan: &Plan) -> Option<Duration> {
    let mut runs = plan.joins.is_zero();
    turns(plan).into_iter().find_map(|(at, state)| {
        let cannot = state == State::Lost && !runs;
        runs = state != State::Away;
        cannot.then_some(at)
    })
}

#[cfg(test)]
mod tests {
    use meshwork_decision::simulator::fleets;

    use super::*;

    fn plan(joins: u64, phases: &[(u64, State)]) -> Plan {
        let phases = phases.iter().map(|&(at, state)| Phase { at: Duration::from_secs(at), state }).collect();
        Plan { joins: Duration::from_secs(joins), phases, ..fleets::even().instances[0].clone() }
    }

    #[test]
    fn who_joins_later_begins_as_it_would_be_by_then() {
        let phases = [(0, State::Serving(9.0)), (2, State::Hanging), (6, State::Serving(1.0))];
        let seconds = |joins| -> Vec<_> {
            turns(&plan(joins, &phases)).into_iter().map(|(at, state)| (at.as_secs(), state)).collect()
        };
        assert_eq!(seconds(0), phases);
        assert_eq!(seconds(3), [(3, State::Hanging), (6, State::Serving(1.0))]);
        assert_eq!(seconds(2), [(2, State::Serving(9.0)), (2, State::Hanging), (6, State::Serving(1.0))]);
        assert_eq!(turns(&plan(1, &[])), [(Duration::from_secs(1), State::Serving(1.0))]);
    }

    #[test]
    fn only_who_runs_can_fall_silent() {
        let lost = |joins, phases: &[(u64, State)]| cannot(&plan(joins, phases)).map(|at| at.as_secs());
        assert_eq!(
            lost(0, &[(0, State::Lost), (2, State::Away), (3, State::Hanging), (4, State::Lost)]),
            None
        );
        assert_eq!(lost(0, &[(2, State::Away), (3, State::Lost)]), Some(3));
        assert_eq!(lost(5, &[(2, State::Lost)]), Some(5));
    }
}
