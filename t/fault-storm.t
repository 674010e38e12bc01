# Load, changes, reloads, other sizes, and workers that are killed, all at random: in the end no
# request is counted, the zone is whole, and each server is there that the API said was.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $SECONDS = 15;
# The same again: TEST_SEED=N prove ...
my $seed = $ENV{TEST_SEED} || time % 1_000_000;
srand $seed;

my @backends = map { RegistryTest->backend(name => $_) } qw(a b);
my $node;
sub configure {
    my ($size) = @_;
    return (
        http => "registry main $size { heartbeat_ttl 1h; cleanup_interval 100ms; }
            upstream backend { registry main; keepalive 4; }
            upstream round { registry main namespace=backend; registry_balance round_robin; }
            proxy_http_version 1.1; proxy_set_header Connection '';",
        server => 'location /upstream/ { registry_api main namespace=backend; }
            location / { proxy_pass http://backend; } location /round { proxy_pass http://round; }',
    );
}
my @SIZES = qw(256k 512k 1m);
$node = RegistryTest->fault(workers => 3, configure('512k'));
api($node, 'add', { host => $_->host, port => $_->port, max_conns => 0 }) for @backends;
my @points = map { $node->points_of($_) } qw(worker life repair);

# What the API said of each port: 1 there, 0 gone, undef: no answer came. And its weight: 0 or
# undef, so that no request goes there.
my (%there, @lost, %tally);
sub pick { return $_[ rand @_ ] }

sub add {
    my $port = 1 + int rand 60;
    my $status = api($node, 'add', { host => '127.0.0.9', port => $port, weight => 0, max_conns => int rand 100 })->{status};
    # 503: the zone was being replaced, nothing has changed.
    $there{$port} = $status ? 1 : undef if $status != 503;
    return "add $status";
}
sub remove {
    my $port = pick(keys %there) or return 'nothing to remove';
    my $status = api($node, 'remove', { host => '127.0.0.9', port => $port })->{status};
    push @lost, "$port was there, remove says 404" if $status == 404 && $there{$port};
    push @lost, "$port was gone, remove says 200" if $status == 200 && defined $there{$port} && !$there{$port};
    $there{$port} = $status ? 0 : undef if $status != 503;
    return "remove $status";
}
sub change {
    my $port = pick(keys %there) or return 'nothing to change';
    my ($endpoint, %more) = @{ pick([ 'refresh' ], [ 'drain' ], [ 'toggle', action => 'disable' ], [ 'toggle', action => 'enable' ], [ 'reset' ], [ 'cleanup' ]) };
    my $status = api($node, $endpoint, { $endpoint =~ /reset|cleanup/ ? () : (host => '127.0.0.9', port => $port), %more })->{status};
    push @lost, "$port was there, $endpoint says 404" if $status == 404 && $there{$port};
    return "$endpoint $status";
}
my $killed = 0;
sub kill_one { my $pid = pick($node->workers, $node->old_workers) or return 'nobody to kill'; $killed++; kill 'KILL', $pid; return 'kill' }
sub order {
    my @orders = map { pick(@points) . ':' . (1 + int rand 3) . ':worker' } 1 .. 1 + int rand 2;
    my $response = $node->get('/upstream/fault?at=' . join ',', @orders);
    return "order $response->{status}";
}
sub reload { $node->set_conf(configure(pick(@SIZES))) if rand() < 0.5; $node->reload(wait => 0); return 'reload' }

my @urls = map { $node->url($_) } '/', '/?delay=0.01', '/round?delay=0.05', '/?delay=0.2';
my $load = load_start(conns => 12, url => \@urls, abort_share => 0.05);
my $until = time + $SECONDS;
my ($next_kill, $next_reload, $next_order) = (0, 0, 0);
while (time < $until) {
    my $now = time;
    my $what;
    if    ($now > $next_kill)   { $what = kill_one(); $next_kill = $now + 0.05 + rand 0.3 }
    elsif ($now > $next_reload) { $what = reload();   $next_reload = $now + 0.2 + rand 0.6 }
    elsif ($now > $next_order)  { $what = order();    $next_order = $now + 0.1 + rand 0.3 }
    else                        { $what = pick(\&add, \&add, \&remove, \&change, \&change)->() }
    $tally{$what}++;
}
$node->arm('') if wait_until(sub { $node->get('/upstream/fault')->{status} == 200 });
my $sum = load_stop($load);
ok(wait_until(sub { $node->workers == 3 }) && $node->reload, 'when it is over all workers are there, and a reload works');
ok(wait_until(sub { !$node->old_workers }), 'no old worker stays');

is_deeply([ keys %{ $sum->{status} } ], [200], 'what was answered was answered well') or diag(explain($sum));
cmp_ok($sum->{requests}, '>', 1000, 'and there was much of it');
cmp_ok($tally{$_} || 0, '>', 5, "as there were: $_") for 'kill', 'reload', 'order 200', 'add 200', 'remove 200';
is_deeply(\@lost, [], 'no server came or went that the API did not say');
my $known = servers($node);
is_deeply([ grep { $there{$_} && !$known->{"127.0.0.9:$_"} } keys %there ], [], 'each is there that was added');
is_deeply([ grep { defined $there{$_} && !$there{$_} && $known->{"127.0.0.9:$_"} } keys %there ], [], 'each is gone that was removed');
ok($known->{ $_->address }, 'those with requests stay') for @backends;
$node->is_idle('nothing is left of any request');
ok(wait_until(sub { !grep { $_->stats->{active} } @backends }), 'nor at the servers');
is_deeply(parallel(8, 200, $node->url('/'))->{status}, { 200 => 200 }, 'and all is well');

# By a point or by hand; a process may have met both.
$node->{killed} = $node->grep_log(qr/exited on signal 9/);
cmp_ok($node->{killed}, '>=', 0.5 * $killed, 'workers have died');
$node->log_is_clean;
diag("TEST_SEED=$seed\n", explain(\%tally)) if !Test::More->builder->is_passing;
done_testing;
