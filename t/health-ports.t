# A machine that has no local port left for another connection does not blame the servers. In a network of the
# test's own, where ports are few.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/health.pl";

our $node;
my $RANGE = '/proc/sys/net/ipv4/ip_local_port_range';

if (!$ENV{TEST_NGINX_OWN_NETWORK}) {
    plan skip_all => 'only root may have a network of its own' if $> || system('unshare -n true >/dev/null 2>&1');
    $ENV{TEST_NGINX_OWN_NETWORK} = 1;
    exec 'unshare', '-n', $^X, (map { "-I$_" } @INC), $0 or die "unshare: $!\n";
}

# Brings up the loopback, as ip link set lo up does: SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP.
sub loopback_up {
    socket my $any, Socket::PF_INET(), Socket::SOCK_DGRAM(), 0 or die "socket: $!\n";
    my $request = pack 'a16 s x14 x8', 'lo', 0;
    ioctl $any, 0x8913, $request or die "lo: $!\n";
    my $flags = unpack 'x16 s', $request;
    ioctl $any, 0x8914, my $up = pack('a16 s x14 x8', 'lo', $flags | 1) or die "lo: $!\n";
    return;
}
loopback_up();

my $probed = RegistryTest->probed;
$node = checked({ main => [ 'type=tcp', 'fails=2', 'passes=1', 'interval=' . ms(0.05) ] });
call('main', add => $probed);
after_checks('main', $probed, 2);

# Who closes first keeps the port for a while; with tcp that is nginx.
my $since = time;
spew($RANGE, "40000 40003\n");
ok($node->wait_log(qr/put off/), 'the ports are used up');
sleep 2 * time_scale();
spew($RANGE, "32768 60999\n");
my $elapsed = time - $since;
my $health = health('main', $probed);
is($health->{fails}, 0, 'no check failed') or diag($health->{last_error});
is(state('main', $probed), 'up', 'the server is up');
my @lines = $node->grep_log(qr/put off/);
like($lines[0] || '', qr/\[warn\] .*registry "main": (?:a health check is|\d+ health checks are) put off: no local port is free$/, 'the log says why there were none');
cmp_ok(scalar @lines, '<=', 2 * (2 + $elapsed), 'one a second from each worker');
after_checks('main', $probed, $health->{checks} + 3, 'with more ports they go on');
$probed->stop;
becomes('main', $probed, 'unhealthy', 'and find who is gone');

$node->log_is_clean;
done_testing;
