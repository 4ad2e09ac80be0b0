//! TCP connections within the machine: so many are opened, refused, accepted and used, and all of that is seen.

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use everflame_agent::collect::{CollectConfig, Collector, TcpConfig};
use everflame_agent::session::{AllocMode, Session, SessionConfig, Target};
use everflame_profile::pprof::Profile;
use everflame_profile::{Kind, retain_labelled, sample_type_index};

use crate::load::{accepted, forms};
use crate::recording::RATE_HZ;

const CONNECTIONS: usize = 100;
/// On each of them.
const REQUESTS: usize = 2;
/// Of connects to a port that nobody listens on.
const REFUSED: usize = 20;

/// Until the rules of this program are loaded its stack is copied, which is allowed so often in a second.
const PAUSE: Duration = Duration::from_millis(10);

/// Returns what was seen.
pub(crate) fn check() -> Result<String> {
    for form in forms() {
        // Not as a recording does it: what is seen of a function's end, where the kernel lets that be.
        let mut config = CollectConfig::of_connections(TcpConfig::default());
        config.program_form = Some(form);
        let collector =
            Collector::start(&config).with_context(|| format!("in the form {form:?}"))?;
        accepted(&collector).with_context(|| format!("in the form {form:?}"))?;
    }
    raise_loopback()?;
    let session = Session::start(SessionConfig {
        kind: Kind::Tcp,
        rate_hz: RATE_HZ,
        alloc_mode: AllocMode::default(),
        alloc_period_bytes: 1 << 20,
        live_period_bytes: None,
        target: Target::All,
    })?;
    for address in ["127.0.0.1:0", "[::1]:0"] {
        talk(address.parse()?).with_context(|| format!("on {address}"))?;
    }
    let recording = session.finish()?;
    let events = |labels: &[(&str, &str)]| count(&recording.profile, labels);
    let connects = events(&[("event", "connect"), ("direction", "outbound")])?;
    let refused = events(&[("event", "connect"), ("error", "ECONNREFUSED")])?;
    let accepts = events(&[("event", "accept"), ("direction", "inbound")])?;
    let outbound = events(&[("event", "request"), ("direction", "outbound")])?;
    let inbound = events(&[("event", "request"), ("direction", "inbound")])?;
    let ipv6 = Ipv6Addr::LOCALHOST.to_string();
    let ipv6 = events(&[("event", "connect"), ("remote", &ipv6)])?;
    let detail = format!(
        "{connects} connects, {ipv6} by IPv6, {refused} refused; {accepts} accepted; requests: \
         {outbound} outbound, {inbound} inbound"
    );
    let each = i64::try_from(CONNECTIONS)?;
    let wanted =
        (2 * each, i64::try_from(2 * REFUSED)?, i64::try_from(2 * CONNECTIONS * REQUESTS)?);
    let (wanted_connects, wanted_refused, wanted_requests) = wanted;
    ensure!(refused == wanted_refused && connects == wanted_connects + refused, "{detail}");
    ensure!(ipv6 == connects / 2 && accepts == wanted_connects, "{detail}");
    ensure!(outbound == wanted_requests && inbound == wanted_requests, "{detail}");
    Ok(detail)
}

/// Connects, asks and answers.
fn talk(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    let mut bytes = [0; 16];
    for _ in 0..CONNECTIONS {
        let mut client = TcpStream::connect(address)?;
        let (mut server, _) = listener.accept()?;
        for _ in 0..REQUESTS {
            client.write_all(b"how are you?")?;
            ensure!(server.read(&mut bytes)? > 0, "nothing came");
            server.write_all(b"fine")?;
            ensure!(client.read(&mut bytes)? > 0, "nothing came back");
        }
        std::thread::sleep(PAUSE);
    }
    drop(listener);
    for _ in 0..REFUSED {
        if TcpStream::connect(address).is_ok() {
            bail!("somebody listens");
        }
    }
    Ok(())
}

/// Events with all these labels.
fn count(profile: &Profile, labels: &[(&str, &str)]) -> Result<i64> {
    let mut profile = profile.clone();
    for (name, value) in labels {
        retain_labelled(&mut profile, name, value);
    }
    let events = sample_type_index(&profile, Some("events"))?;
    Ok(profile.sample.iter().filter_map(|sample| sample.value.get(events)).sum())
}

/// As `ip link set lo up` does.
fn raise_loopback() -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    up::raise(&socket, c"lo").context("cannot raise the loopback device")
}

mod up {
    use std::ffi::CStr;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd as _;

    /// `SIOCSIFFLAGS` with `IFF_UP`.
    pub(super) fn raise(socket: &UdpSocket, name: &CStr) -> std::io::Result<()> {
        // SAFETY: integers, of which zeros are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.to_bytes()) {
            *to = from.cast_signed() as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        // SAFETY: the request is what the operation takes.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) };
        if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    }
}
