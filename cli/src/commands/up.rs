//! `meshwork up`: the whole platform on this machine, with a shop on it.

use std::error::Error;
use std::fs::OpenOptions;
use std::io::{IsTerminal as _, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use meshwork_api::Client;
use meshwork_base::{Clock, SystemClock};
use meshwork_process::parse_duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Outcome;
use crate::output;
use crate::private;
use crate::up::endpoints::{Endpoints, FILE};
use crate::up::plan::{NO_PYTHON, Plan, Wanted, has_python};
use crate::up::supervise::{News, Supervised, What, all_ready, until_answers};
use crate::up::{UpError, claim, pids, resources};

/// How long a process may take to end what it does.
const PATIENCE: Duration = Duration::from_secs(35);
/// How often a platform that starts in the background is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Start the whole platform on this machine, with the shop
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Return when all is ready, and leave the platform running
    #[arg(long)]
    detach: bool,
    /// Folder that holds all state
    #[arg(long, value_name = "DIR", env = "MESHWORK_DATA_DIR", default_value = ".meshwork")]
    data_dir: PathBuf,
    /// Folder of resources, instead of the shop's (which are written to DIR/resources at the first start)
    #[arg(long, value_name = "DIR", env = "MESHWORK_RESOURCES")]
    resources: Option<PathBuf>,
    /// Start the platform alone
    #[arg(long)]
    no_shop: bool,
    /// How long everything may take to be ready
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = parse_duration)]
    timeout: Duration,
    /// The loopback address of server and gateway, for a second platform on one machine: with another than 127.0.0.1 the shop's instances have the addresses that follow it
    #[arg(long, value_name = "IP", env = "MESHWORK_BASE_ADDRESS", default_value_t = Ipv4Addr::LOCALHOST, value_parser = loopback)]
    base_address: Ipv4Addr,
    /// Threads that carry traffic, of each process [default: as each finds right]
    #[arg(long, value_name = "N", env = "MESHWORK_WORKERS")]
    workers: Option<std::num::NonZeroUsize>,
    /// Certificate (PEM) of a root of your own, under which identities are issued [default: one is made at the first start]
    #[arg(long, value_name = "FILE", env = "MESHWORK_CA_CERT", requires = "ca_key")]
    ca_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", env = "MESHWORK_CA_KEY", requires = "ca_cert")]
    ca_key: Option<PathBuf>,
    /// Begin a session of its own; what --detach starts
    #[arg(long, hide = true)]
    own_session: bool,
}

fn loopback(text: &str) -> Result<Ipv4Addr, String> {
    match text.parse::<Ipv4Addr>() {
        Ok(address) if address.is_loopback() => Ok(address),
        _ => Err("it must be an address of 127.0.0.0/8: `up` is for one machine".to_owned()),
    }
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    if arguments.detach {
        return detach(arguments);
    }
    if arguments.own_session {
        // It fails for who leads a session already, which is as good.
        let _ = rustix::process::setsid();
    }
    let claimed = claim(&arguments.data_dir)?;
    let own = pids::Process::of(std::process::id())
        .ok_or_else(|| UpError::Told("/proc cannot be read: `up` needs Linux".to_owned()))?;
    let pid_file = arguments.data_dir.join("up.pid");
    pids::write(&pid_file, own)?;
    forget_endpoints(&arguments.data_dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(keep_up(arguments));
    drop(std::fs::remove_file(&pid_file));
    drop(claimed);
    result?;
    Ok(ExitCode::SUCCESS)
}

fn forget_endpoints(data_dir: &Path) -> Result<(), UpError> {
    let path = data_dir.join(FILE);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(UpError::io(&path)(error)),
        _ => Ok(()),
    }
}

fn plan(arguments: &Arguments) -> Result<Plan, UpError> {
    let with_shop = !arguments.no_shop;
    let base = IpAddr::V4(arguments.base_address);
    let resources = match &arguments.resources {
        Some(folder) => std::path::absolute(folder).map_err(UpError::io(folder))?,
        None => resources::write(&arguments.data_dir, base, with_shop)?,
    };
    let resources = std::path::absolute(&resources).map_err(UpError::io(&resources))?;
    Plan::new(&Wanted {
        data_dir: &arguments.data_dir,
        base,
        resources: &resources,
        with_shop,
        workers: arguments.workers.map(std::num::NonZeroUsize::get),
        root: arguments.ca_cert.as_deref().zip(arguments.ca_key.as_deref()),
    })
}

/// Processes in the order in which they were started.
struct Platform {
    plan: Plan,
    clock: Arc<dyn Clock>,
    news: mpsc::Receiver<News>,
    tell: mpsc::Sender<News>,
    running: Vec<Supervised>,
    progress: bool,
}

async fn keep_up(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let (tell, news) = mpsc::channel(64);
    let plan = plan(arguments)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let progress = std::io::stderr().is_terminal();
    let mut platform = Platform { plan, clock, news, tell, running: Vec::new(), progress };
    let told = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            // A closed terminal ends what was started on it.
            _ = hang_up.recv() => {}
        }
    };
    let result = tokio::select! {
        result = platform.serve(arguments) => result,
        () = told => Ok(()),
    };
    platform.note("stopping");
    drop(forget_endpoints(&arguments.data_dir));
    let again = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::select! {
        () = platform.stop() => {}
        () = again => pids::kill_all(&arguments.data_dir),
    }
    Ok(result?)
}

impl Platform {
    fn note(&self, text: &str) {
        if self.progress {
            output::note(text);
        }
    }

    fn start(&mut self, tasks: &[crate::up::plan::Task]) -> Vec<String> {
        for task in tasks {
            self.note(&format!("starting {}", task.name));
            let (clock, tell) = (Arc::clone(&self.clock), self.tell.clone());
            self.running.push(Supervised::start(task.clone(), &self.plan.data_dir, PATIENCE, clock, tell));
        }
        tasks.iter().map(|task| task.name.clone()).collect()
    }

    /// Starts everything, says so, and keeps what scripts read up to date. It ends only with an error.
    async fn serve(&mut self, arguments: &Arguments) -> Result<(), UpError> {
        let until = (arguments.timeout, Instant::now() + arguments.timeout);
        let data_dir = self.plan.data_dir.clone();
        for note in &self.plan.notes {
            output::note(note);
        }
        let progress = self.progress;
        let tell = move |news: &News| match &news.what {
            What::Ready if progress => output::note(&format!("{} is ready", news.name)),
            What::Ended(how) | What::Unable(how) if progress => {
                output::note(&format!("{}: {how}; starting it again", news.name));
            }
            What::Ready | What::Ended(_) | What::Unable(_) => {}
        };
        let all: Vec<_> = self.plan.tasks().cloned().collect();
        let server = self.start(&all[..1]);
        all_ready(&server, &mut self.news, &data_dir, until, tell).await?;
        let others = self.start(&all[1..]);
        all_ready(&others, &mut self.news, &data_dir, until, tell).await?;
        if !arguments.no_shop && arguments.resources.is_none() {
            self.shop_works(until).await?;
        }
        let endpoints = Endpoints::now(&self.plan);
        self.announce(&endpoints).map_err(UpError::io(Path::new("stdout")))?;
        endpoints.write(&data_dir)?;
        output::print("ready\n").map_err(UpError::io(Path::new("stdout")))?;
        while let Some(news) = self.news.recv().await {
            tell(&news);
            if let What::Ended(how) | What::Unable(how) = &news.what {
                self.log(&format!("{}: {how}; starting it again", news.name));
            }
            Endpoints::now(&self.plan).write(&data_dir)?;
        }
        Ok(())
    }

    /// A customer's first page comes through the gateway and the sidecars.
    async fn shop_works(&self, (timeout, deadline): (Duration, Instant)) -> Result<(), UpError> {
        let url = format!("http://{}:8080", self.plan.base);
        let client = Client::http(&url).map_err(|error| UpError::Told(error.to_string()))?;
        let page = until_answers(&client, "/");
        tokio::time::timeout_at(deadline, page).await.map_err(|_| UpError::NotReady {
            name: "the shop".to_owned(),
            seconds: timeout.as_secs(),
            why: format!("{url}/ does not answer with a page"),
            log: self.plan.data_dir.join("gateway/access.log"),
        })
    }

    /// What happened, for who looks later.
    fn log(&self, text: &str) {
        let path = self.plan.data_dir.join("up.events");
        let file = OpenOptions::new().append(true).create(true).open(path);
        let time = meshwork_base::clock::rfc3339_millis(self.clock.wall());
        // The platform goes on without this file.
        drop(file.and_then(|mut file| writeln!(file, "{time} {text}")));
    }

    fn announce(&self, endpoints: &Endpoints) -> std::io::Result<()> {
        let mut rows = vec![
            vec!["shop".to_owned(), endpoints.gateway.http.clone(), endpoints.gateway.https.clone()],
            vec!["gateway".to_owned(), endpoints.gateway.admin.clone(), "admin".to_owned()],
            vec!["control plane".to_owned(), endpoints.control_plane.clone(), "API".to_owned()],
            vec!["registry".to_owned(), endpoints.registry.clone(), "Consul's API".to_owned()],
            vec!["config".to_owned(), endpoints.config.clone(), "documents".to_owned()],
        ];
        if endpoints.instances.is_empty() {
            rows[0][0] = "gateway".to_owned();
        }
        rows.extend(endpoints.instances.iter().map(|instance| {
            vec![instance.instance.clone(), instance.address.to_string(), instance.service.clone()]
        }));
        output::table(&["NAME", "ADDRESS", ""], rows)
    }

    /// In the reverse order: nobody loses whom it calls.
    async fn stop(&mut self) {
        let mut running = std::mem::take(&mut self.running).into_iter();
        let server = running.next();
        let gateway = running.next();
        // Nobody reads the news any more.
        self.news.close();
        for one in [gateway].into_iter().flatten() {
            one.stop().await;
        }
        let instances: Vec<_> = running.map(|one| tokio::spawn(one.stop())).collect();
        for one in instances {
            drop(one.await);
        }
        for one in [server].into_iter().flatten() {
            one.stop().await;
        }
    }
}

/// Starts the same in the background, and waits until it is ready.
fn detach(arguments: &Arguments) -> Outcome {
    // What keeps it from starting is said here and at once.
    drop(claim(&arguments.data_dir)?);
    forget_endpoints(&arguments.data_dir)?;
    private::folder(&arguments.data_dir)?;
    let path = arguments.data_dir.join("up.log");
    let log = std::fs::File::create(&path).map_err(UpError::io(&path))?;
    let given: Vec<_> = std::env::args_os().skip(1).filter(|argument| argument != "--detach").collect();
    let mut command = Command::new(std::env::current_exe()?);
    command.args(given).arg("--own-session").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut child = command.spawn()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let ready = arguments.data_dir.join(FILE);
        loop {
            if ready.exists() {
                // The other one has said it too, where nobody looks.
                if !arguments.no_shop && !has_python() {
                    output::note(NO_PYTHON);
                }
                return Ok(ExitCode::SUCCESS);
            }
            if let Some(status) = child.try_wait()? {
                let said = std::fs::read_to_string(&path).unwrap_or_default();
                let error = said.lines().rev().find_map(|line| line.strip_prefix("error: "));
                let why = error.map_or_else(
                    || format!("the platform ended with {status}; see {}", path.display()),
                    str::to_owned,
                );
                return Err(UpError::Told(why).into());
            }
            tokio::time::sleep(LOOK).await;
        }
    })
}
