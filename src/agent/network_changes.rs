//! Tells when addresses or routes of this host change.

use std::time::Duration;

use tokio::time::sleep;

/// How often to look where the system does not tell.
const POLL_EVERY: Duration = Duration::from_secs(2);

/// Changes of this host's network, as far as the system tells.
#[derive(Debug)]
pub struct NetworkChanges {
    /// `None` where there is no such thing, or it is not permitted.
    notifications: Option<notifications::Socket>,
}

impl NetworkChanges {
    /// Watches from now on.
    pub fn watch() -> Self {
        let notifications = notifications::Socket::open();
        if let Err(error) = &notifications {
            tracing::debug!("the system does not tell of changes of the network ({error}); looking every 2 s");
        }
        Self { notifications: notifications.ok() }
    }

    /// Waits until something may have changed. Changes at the same time are one.
    pub async fn next(&mut self) {
        let Some(socket) = &mut self.notifications else { return sleep(POLL_EVERY).await };
        if let Err(error) = socket.changed().await {
            tracing::warn!("cannot hear of changes of the network any more ({error}); looking every 2 s");
            self.notifications = None;
        }
    }
}

#[cfg(target_os = "linux")]
mod notifications {
    //! rtnetlink(7).

    use std::io;
    use std::os::fd::OwnedFd;

    use rustix::io::Errno;
    use rustix::net::netlink::SocketAddrNetlink;
    use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
    use tokio::io::unix::AsyncFd;

    /// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV6_IFADDR` and `RTMGRP_IPV6_ROUTE` of
    /// `linux/rtnetlink.h`.
    const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

    /// A socket on which the kernel announces what it changes.
    #[derive(Debug)]
    pub struct Socket(AsyncFd<OwnedFd>);

    impl Socket {
        #[expect(deprecated, reason = "what is asked of the descriptor for `AsyncFd::register`, an `OwnedFd` keeps")]
        pub fn open() -> io::Result<Self> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            // No protocol is protocol 0: NETLINK_ROUTE.
            let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
            bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
            Ok(Self(AsyncFd::new(socket)?))
        }

        /// Waits for an announcement, and takes those that have come with it. What they say does not matter: the route
        /// to the stub is looked up anew.
        pub async fn changed(&mut self) -> io::Result<()> {
            let mut ready = self.0.readable().await?;
            loop {
                // The rest of a message that is longer is dropped by the kernel.
                let mut message = [0u8; 64];
                match recv(ready.get_inner(), &mut message, RecvFlags::empty()) {
                    // More was announced than the socket holds: something has changed.
                    Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
                    Err(Errno::AGAIN) => {
                        ready.clear_ready();
                        return Ok(());
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod notifications {
    //! Nothing here tells.

    use std::convert::Infallible;
    use std::io;

    #[derive(Debug)]
    pub struct Socket(Infallible);

    impl Socket {
        pub fn open() -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub async fn changed(&mut self) -> io::Result<()> {
            match self.0 {}
        }
    }
}
