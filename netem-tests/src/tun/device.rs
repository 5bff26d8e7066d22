//! Opening a TUN device.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{Setter, ioctl, opcode};

/// Makes a TUN device in the network namespace of the calling thread. It lives as long as the descriptor, which gives
/// and takes whole IP packets and never blocks.
pub(super) fn open(name: &str) -> io::Result<OwnedFd> {
    let request = InterfaceRequest::new(name)?;
    let device = rustix::fs::open("/dev/net/tun", OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: TUNSETIFF takes a pointer to a `struct ifreq`, and `InterfaceRequest` has its size and layout. It writes
    // the device's name back into what it was given, which is `Setter`'s own copy and never looked at again.
    unsafe { ioctl(&device, Setter::<TUNSETIFF, InterfaceRequest>::new(request))? };
    Ok(device)
}

/// `_IOW('T', 202, int)` of linux/if_tun.h, which names another type than it takes.
const TUNSETIFF: rustix::ioctl::Opcode = opcode::write::<i32>(b'T', 202);

/// A layer 3 device, and no header of its own before each packet.
const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;

/// `struct ifreq` of linux/if.h on 64-bit machines: a name and a union of which only the flags are used.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    unused: [u8; 22],
}

impl InterfaceRequest {
    fn new(name: &str) -> io::Result<Self> {
        let mut request = Self { name: [0; 16], flags: IFF_TUN | IFF_NO_PI, unused: [0; 22] };
        // The last byte stays zero: the name ends there at the latest.
        let room = request.name.get_mut(..name.len()).filter(|_| name.len() < 16);
        room.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(name.as_bytes());
        Ok(request)
    }
}
