# A worker dies while it joins or leaves the zone, takes back what another dead one left, or
# becomes the elected one.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $WORKERS = 3;
my @backends = map { RegistryTest->backend(name => $_) } qw(a b);
my $node = RegistryTest->fault(
    workers => $WORKERS,
    http => 'registry main 512k { heartbeat_ttl 1h; cleanup_interval 1h; }
        registry quick 256k { cleanup_interval 50ms; }
        upstream backend { registry main; } proxy_buffering off;',
    server => 'location /upstream/ { registry_api main; } location /quick/ { registry_api quick; }
        location / { proxy_pass http://backend; add_header X-Worker $pid; }',
);
api($node, 'add', { host => $_->host, port => $_->port, max_conns => 0 }) for @backends;

my %how = (join => \&replacement, reap => \&replacement, leave => \&reload, elect => \&election);

# A worker is killed, and who takes its place dies too.
sub replacement {
    my ($point) = @_;
    my $held = $node->held(8, 2);
    my ($victim) = sort { @{ $held->{$b} } <=> @{ $held->{$a} } } keys %$held;
    $node->arm("$point:1:worker");
    $node->{killed}++;
    kill 'KILL', $victim;
    ok($node->died, 'the second to take its place lives');
    $node->is_whole(held_by($held, $node->workers), 'when it is there the zone is whole, and without the requests of the dead');
    is($node->get('/')->{status}, 200, 'requests go on');
    return $held;
}

sub reload {
    my ($point) = @_;
    my $held = $node->held(8, 1);
    my $all = connections($node);
    $node->arm("$point:1:worker");
    # A worker with nothing to do leaves at once.
    my @idle = grep { !$held->{$_} } $node->workers;
    ok(@idle || $node->reload(wait => 'new'), 'all have requests under way: a reload brings workers without') or return $held;
    ok($node->reload(wait => 'new'), 'a reload while an old worker dies');
    ok($node->died, 'it did');
    $node->is_whole(held_by($held, $node->workers, $node->old_workers), 'the zone is whole, the requests of the other old workers are counted');
    return $held;
}

sub election {
    my ($point) = @_;
    # Else it would be one of these that is.
    wait_until(sub { $node->points->{$point}[1] }) or die "nobody is elected\n";
    $node->arm("$point:1:worker");
    my @workers = $node->workers;
    $node->{killed} += @workers;
    # While all stand still none can follow the one that is killed first.
    kill 'STOP', @workers;
    kill 'KILL', @workers;
    ok($node->died, 'of new workers the first that would be elected dies');
    is_deeply($node->checked('/quick/')->{problems}, [], 'the zone is whole');
    return {};
}

sub held_by {
    my ($held, @pids) = @_;
    my $n = 0;
    $n += @{ $held->{$_} || [] } for @pids;
    return $n;
}

for my $point ($node->points_of('life')) {
    my ($change) = $point =~ /^(\w+)/;
    subtest $point => sub {
        my $held = $how{$change}->($point);
        $_->close for map { @$_ } values %$held;
        ok(wait_until(sub { !$node->old_workers }), 'no old worker stays');
        $node->is_idle('and in the end nothing of any request');
    };
}

$node->log_is_clean;
done_testing;
