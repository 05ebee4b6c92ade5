//! A real etcd and kube-apiserver on loopback, without nodes and controllers: what a test writes
//! into it is what is there. Both end with the thread that started them, however that ends.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::lab::wait_until;

/// Where a cluster's programs are: etcd, kube-apiserver and kubectl at least.
pub const PARTS: &str = "PICKET_CLUSTER_PARTS";
/// How long a server may take to answer, on a machine that does other things, too.
const READY_WITHIN: Duration = Duration::from_mins(3);
/// What the server is called in its certificate.
const SERVER: &str = "[v3]
subjectAltName=IP:127.0.0.1,DNS:localhost
extendedKeyUsage=serverAuth
";
const CLIENT: &str = "[v3]
extendedKeyUsage=clientAuth
";

/// A running server.
#[derive(Debug)]
pub struct ApiServer {
    directory: PathBuf,
    parts: PathBuf,
    port: u16,
    etcd_port: u16,
    etcd: Running,
    server: Option<Running>,
}

impl ApiServer {
    /// Starts both and waits until they answer.
    pub fn start() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let parts = std::env::var_os(PARTS).with_context(|| {
            format!("{PARTS} is not set: run `cargo xtask test api`, which builds them and sets it")
        })?;
        let parts = PathBuf::from(parts);
        for part in ["etcd", "kube-apiserver", "kubectl"] {
            let file = parts.join(part);
            ensure!(
                file.is_file(),
                "{PARTS}: no {}; build it: cargo xtask cluster parts --group api",
                file.display()
            );
        }
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("picket-api-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        // Left from a process that had our number.
        drop(fs::remove_dir_all(&directory));
        fs::create_dir_all(&directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        make_certificates(&directory)?;
        let [port, etcd_port, peer_port] = free_ports()?;
        let etcd = start_etcd(&parts, &directory, etcd_port, peer_port)?;
        let mut api = Self {
            directory,
            parts,
            port,
            etcd_port,
            etcd,
            server: None,
        };
        api.start_server()?;
        Ok(api)
    }

    /// Kills kube-apiserver; what was written stays in etcd.
    pub fn kill_server(&mut self) {
        self.server = None;
    }

    /// Starts kube-apiserver again, where it was, and waits until it answers.
    pub fn start_server(&mut self) -> Result<()> {
        let pki = |file: &str| self.directory.join(file).display().to_string();
        let mut command = Command::new(self.parts.join("kube-apiserver"));
        command
            .arg(format!(
                "--etcd-servers=http://127.0.0.1:{}",
                self.etcd_port
            ))
            .arg("--bind-address=127.0.0.1")
            .arg("--advertise-address=127.0.0.1")
            .arg(format!("--secure-port={}", self.port))
            .arg("--endpoint-reconciler-type=none")
            .arg(format!("--tls-cert-file={}", pki("server.crt")))
            .arg(format!("--tls-private-key-file={}", pki("server.key")))
            .arg(format!("--client-ca-file={}", pki("ca.crt")))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!("--service-account-key-file={}", pki("sa.pub")))
            .arg(format!(
                "--service-account-signing-key-file={}",
                pki("sa.key")
            ))
            .arg("--service-cluster-ip-range=10.0.0.0/16")
            .arg("--authorization-mode=RBAC")
            .arg("--disable-admission-plugins=ServiceAccount");
        let mut server = Running::start(command, &self.directory.join("kube-apiserver.log"))?;
        wait_until("kube-apiserver to be ready", READY_WITHIN, || {
            if let Err(ended) = server.check() {
                return Ok(Err(ended));
            }
            let asked = self
                .kubectl()?
                .args(["get", "--raw", "/readyz"])
                .output()
                .context("running kubectl")?;
            ensure!(
                asked.status.success(),
                "{}",
                String::from_utf8_lossy(&asked.stderr)
            );
            Ok(Ok(()))
        })
        .and_then(|ready| ready)?;
        self.server = Some(server);
        Ok(())
    }

    /// A kubeconfig that may do everything.
    pub fn kubeconfig(&self) -> Result<PathBuf> {
        self.kubeconfig_at("admin", &format!("https://127.0.0.1:{}", self.port))
    }

    /// A kubeconfig of a user that may do what the server's rules say; made on first use.
    pub fn kubeconfig_of(&self, user: &str) -> Result<PathBuf> {
        if !self.directory.join(format!("{user}.crt")).exists() {
            sign(&self.directory, user, &format!("/CN={user}"), CLIENT)?;
        }
        self.kubeconfig_at(user, &format!("https://127.0.0.1:{}", self.port))
    }

    /// A kubeconfig of a user for another address.
    pub fn kubeconfig_at(&self, user: &str, url: &str) -> Result<PathBuf> {
        let file = |name: String| self.directory.join(name).display().to_string();
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": url, "certificate-authority": file("ca.crt".to_owned())}}],
            "users": [{"name": user, "user": {
                "client-certificate": file(format!("{user}.crt")),
                "client-key": file(format!("{user}.key"))}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
        });
        let port = url.rsplit(':').next().unwrap_or_default();
        let path = self.directory.join(format!("{user}-{port}.kubeconfig"));
        fs::write(&path, text.to_string())
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// A kubeconfig of whoever has a token.
    pub fn kubeconfig_with_token(&self, user: &str, token: &str) -> Result<PathBuf> {
        let url = format!("https://127.0.0.1:{}", self.port);
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": url, "certificate-authority": self.directory.join("ca.crt")}}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
        });
        let path = self.directory.join(format!("{user}-token.kubeconfig"));
        fs::write(&path, text.to_string())
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// A client that may do everything.
    pub async fn client(&self) -> Result<Client> {
        let file = Kubeconfig::read_from(self.kubeconfig()?).context("reading the kubeconfig")?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
            .await
            .context("reading the kubeconfig")?;
        Client::try_from(config).context("making a client")
    }

    /// kubectl, which may do everything. What it remembers of the server goes with the server.
    pub fn kubectl(&self) -> Result<Command> {
        let mut kubectl = Command::new(self.parts.join("kubectl"));
        kubectl
            .arg("--kubeconfig")
            .arg(self.kubeconfig()?)
            .env("KUBECACHEDIR", self.directory.join("kubectl-cache"));
        Ok(kubectl)
    }

    /// The process of the server, while it runs.
    pub fn pid(&self) -> Option<u32> {
        Some(self.server.as_ref()?.child.id())
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.server = None;
        self.etcd.end();
        // It may be gone already, with a test that removed it.
        drop(fs::remove_dir_all(&self.directory));
    }
}

fn start_etcd(parts: &Path, directory: &Path, port: u16, peer_port: u16) -> Result<Running> {
    let (here, peer) = (
        format!("http://127.0.0.1:{port}"),
        format!("http://127.0.0.1:{peer_port}"),
    );
    let mut command = Command::new(parts.join("etcd"));
    command
        .args([
            "--name",
            "default",
            "--log-level",
            "warn",
            "--unsafe-no-fsync",
        ])
        .arg("--data-dir")
        .arg(directory.join("etcd"))
        .args([
            "--listen-client-urls",
            &here,
            "--advertise-client-urls",
            &here,
        ])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ])
        .args(["--initial-cluster", &format!("default={peer}")]);
    Running::start(command, &directory.join("etcd.log"))
}

/// A process that does not outlive the thread that started it.
#[derive(Debug)]
struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(mut command: Command, log: &Path) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("the log twice")?)
            .stderr(file);
        // SAFETY: between fork and exec, prctl is one system call and touches no memory.
        unsafe {
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        let child = command
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().display()))?;
        Ok(Self {
            child,
            log: log.to_owned(),
        })
    }

    /// An error when it has ended.
    fn check(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait().context("asking for its end")? else {
            return Ok(());
        };
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines
            .get(lines.len().saturating_sub(10)..)
            .unwrap_or_default();
        bail!("{}: {status}\n{}", self.log.display(), last.join("\n"))
    }

    fn end(&mut self) {
        // Killed: on SIGTERM a server whose etcd has gone waits for a minute.
        self.child.kill().unwrap_or_default();
        drop(self.child.wait());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// Ports that nobody listens on now.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut held = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0").context("looking for a free port")?;
        *port = listener.local_addr().context("asking for the port")?.port();
        held.push(listener);
    }
    Ok(ports)
}

/// A certificate authority, the server's and the admin's certificates, the keys of service accounts.
fn make_certificates(directory: &Path) -> Result<()> {
    make_key(directory, "ca")?;
    openssl(
        directory,
        "req -x509 -new -key ca.key -days 3650 -subj /CN=test-ca -out ca.crt \
         -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,digitalSignature,keyCertSign",
    )?;
    sign(directory, "server", "/CN=kube-apiserver", SERVER)?;
    sign(directory, "admin", "/O=system:masters/CN=admin", CLIENT)?;
    openssl(directory, "genrsa -out sa.key 2048")?;
    openssl(directory, "rsa -in sa.key -pubout -out sa.pub")
}

fn make_key(directory: &Path, name: &str) -> Result<()> {
    let command = format!("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {name}.key");
    openssl(directory, &command)
}

fn sign(directory: &Path, name: &str, subject: &str, extensions: &str) -> Result<()> {
    make_key(directory, name)?;
    fs::write(directory.join(format!("{name}.ext")), extensions)
        .context("writing a certificate's extensions")?;
    openssl(
        directory,
        &format!("req -new -key {name}.key -subj {subject} -out {name}.csr"),
    )?;
    openssl(
        directory,
        &format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 \
             -extfile {name}.ext -extensions v3 -out {name}.crt"
        ),
    )
}

fn openssl(directory: &Path, arguments: &str) -> Result<()> {
    let output = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .context("running openssl; install it: apt-get install openssl")?;
    ensure!(
        output.status.success(),
        "openssl {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
