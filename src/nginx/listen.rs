//! The addresses that a server block listens on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ngx::ffi::{
    ngx_conf_t, ngx_http_conf_addr_t, ngx_http_conf_ctx_t, ngx_http_conf_port_t,
    ngx_http_core_main_conf_t, ngx_http_core_module, ngx_http_core_srv_conf_t,
};

/// An address other than loopback on which the server can be reached, if there is one. To be asked
/// after all of http{} has been read.
pub(crate) fn beyond_loopback(
    cf: *mut ngx_conf_t,
    server: *const ngx_http_core_srv_conf_t,
) -> Option<SocketAddr> {
    // SAFETY: after http{} has been read the core module's main configuration has its ports, each
    // with its addresses, each with its servers, in arrays of these types.
    unsafe {
        let context = (*cf).ctx.cast::<ngx_http_conf_ctx_t>();
        let main = *(*context).main_conf.add(ngx_http_core_module.ctx_index);
        let ports = (*main.cast::<ngx_http_core_main_conf_t>()).ports.as_ref()?;
        for port in ports.as_slice::<ngx_http_conf_port_t>() {
            for addr in port.addrs.as_slice::<ngx_http_conf_addr_t>() {
                let servers = addr.servers.as_slice::<*const ngx_http_core_srv_conf_t>();
                let found = address(addr.opt.sockaddr.cast());
                if let Some(found) = found.filter(|a| !a.ip().is_loopback())
                    && servers.contains(&server)
                {
                    return Some(found);
                }
            }
        }
    }
    None
}

/// An IP address and port; `None` for a unix socket.
///
/// # Safety
///
/// `sockaddr` is null or a socket address as long as its family says.
pub(crate) unsafe fn address(sockaddr: *const libc::sockaddr) -> Option<SocketAddr> {
    // SAFETY: by this function's contract.
    unsafe {
        let (ip, port): (IpAddr, u16) = match i32::from(sockaddr.as_ref()?.sa_family) {
            libc::AF_INET => {
                let v4 = sockaddr.cast::<libc::sockaddr_in>().read_unaligned();
                (Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes()).into(), v4.sin_port)
            }
            libc::AF_INET6 => {
                let v6 = sockaddr.cast::<libc::sockaddr_in6>().read_unaligned();
                (Ipv6Addr::from(v6.sin6_addr.s6_addr).into(), v6.sin6_port)
            }
            _ => return None,
        };
        Some(SocketAddr::new(ip, u16::from_be(port)))
    }
}
