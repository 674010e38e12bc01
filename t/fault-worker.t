# A worker dies in the middle of a change, at each point that is marked in the sources: nobody
# hangs, the requests of the others go on, and the zone is whole.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $WORKERS = 3;
my $TTL = 150 * time_scale();
my @backends = map { RegistryTest->backend(name => $_) } qw(a b);
# On any address of the loopback.
my $everywhere = RegistryTest->backend(name => 'everywhere', host => '0.0.0.0');
my $node = RegistryTest->fault(
    workers => $WORKERS,
    http => "registry main 512k { heartbeat_ttl 1h; cleanup_interval 1h; }
        registry brief 256k { heartbeat_ttl ${TTL}ms; cleanup_interval 1h; }
        upstream backend { registry main; keepalive 4; }
        upstream round { registry main namespace=backend; registry_balance round_robin; }
        upstream drawn { registry main namespace=backend; registry_balance random; }
        upstream brief { registry brief; server $backends[0]->{host}:$backends[0]->{port}; }
        proxy_http_version 1.1; proxy_set_header Connection ''; proxy_buffering off;",
    server => 'location /upstream/ { registry_api main; }
        location /brief/ { registry_api brief; }
        location / { proxy_pass http://backend; add_header X-Worker $pid; }
        location /round { proxy_pass http://round; }
        location /drawn { proxy_pass http://drawn; }
        location /silent { proxy_pass http://brief; }',
);
my %NS = (ns => 'backend');

sub add_all { api($node, 'add', { %NS, host => $_->host, port => $_->port, max_conns => 0 }) for @backends; return }
add_all();

# Each is one request; false when it was not answered.
my $round = 0;
sub changes {
    my @ports = map { 10 * ++$round + $_ } 1 .. 6;
    my %host = (host => '127.0.0.9');
    my %fresh = (host => "127.0.2.$round", port => $everywhere->port);
    my $post = sub { my ($endpoint, %fields) = @_; return sub { api($node, $endpoint, { %NS, %host, %fields }) } };
    return (
        $post->('add', port => $ports[0], weight => 0),
        $post->('add', port => $ports[0], weight => 3, max_conns => 5),
        $post->('add', port => $ports[0], weight => 0),
        $post->('refresh', port => $ports[0]),
        $post->('toggle', port => $ports[0], action => 'disable'),
        $post->('toggle', port => $ports[0], action => 'enable'),
        $post->('drain', port => $ports[0]),
        map({ $post->('add', port => $ports[$_], weight => 0) } 1 .. 5),
        $post->('add', port => 1, ns => "elsewhere$round"),
        $post->('remove', port => 1, ns => "elsewhere$round"),
        map({ $post->('remove', port => $ports[$_]) } 0 .. 5),
        $post->('reset'),
        # A server that no worker has had requests on, and that all go to.
        $post->('add', %fresh, weight => 1000, max_conns => 0),
        map({ sub { $node->get('/') } } 1 .. 3),
        $post->('remove', %fresh),
        map({ my $uri = $_; sub { $node->get($uri) } } ('/') x 3, '/round', '/drawn', '/?status=503'),
        $post->('cleanup'),
    );
}
# The same with servers that fall silent.
sub silence {
    my $add = sub { my ($port) = @_; return sub { $node->post('/brief/add', body => form({ ns => 'brief', host => '127.0.0.9', port => $port, weight => 5 })) } };
    my $cleanup = sub { $node->post('/brief/cleanup', body => form({ ns => 'brief' })) };
    my $request = sub { $node->get('/silent') };
    return (map({ $add->($_) } 1 .. 3), sub { sleep 1.1 * $TTL / 1000; return { status => 200 } }, $request, $cleanup, map({ $add->($_) } 1 .. 3), $cleanup);
}

# Servers that may be chosen, in two orders: their heaps outgrow their places.
sub growth {
    my $each = sub {
        my ($endpoint) = @_;
        return map { my $host = "127.0.3.$_"; sub { api($node, $endpoint, { %NS, host => $host, port => $everywhere->port }) } } 1 .. 12;
    };
    return (sub { $node->get('/round') }, $each->('add'), $each->('remove'));
}

# Requests under way in all workers, those of the dead replaced; how many there are.
my %held;
sub hold {
    my %alive = map { $_ => 1 } $node->workers;
    $_->close for map { @$_ } delete @held{ grep { !$alive{$_} } keys %held };
    my $count = sub { my $n = 0; $n += @$_ for values %held; return $n };
    for (1 .. 100) {
        last if $count->() >= 6 && keys %held > 1;
        my $more = $node->held(1);
        push @{ $held{$_} }, @{ $more->{$_} } for keys %$more;
    }
    return $count->();
}
sub under_way {
    my %alive = map { $_ => 1 } $node->workers;
    my $n = 0;
    $n += @{ $held{$_} } for grep { $alive{$_} } keys %held;
    return $n;
}

sub dies_at {
    my ($point, @changes) = @_;
    return subtest $point => sub {
        hold();
        my $load = RegistryTest::Load->new(conns => 4, requests => 60, url => $node->url('/?delay=0.001'));
        $node->arm("$point:1:worker");
        $load->start;
        my ($answered, $lost) = (0, 0);
        for my $change (@changes) {
            $change->()->{status} ? $answered++ : $lost++;
        }
        my $sum = $load->wait;
        ok($node->died, 'a worker dies there, and is replaced');
        ok($lost <= 1 && $sum->{failed} <= 4, 'no requests but its own fail')
            or diag("lost $lost of " . ($lost + $answered) . ': ', explain($sum));
        ok(!grep({ !/^(?:200|503)$/ } keys %{ $sum->{status} }), 'all others are answered well') or diag(explain($sum));
        $node->is_whole(under_way(), 'the zone is whole, the requests of the living are counted');
        is_deeply($node->checked('/brief/')->{problems}, [], 'and the other zone is');
    };
}

my %other = ((map { $_ => \&silence } qw(sweep.server expire.stale expire.flagged)), 'heap.moved' => \&growth);
dies_at($_, ($other{$_} || \&changes)->()) for $node->points_of('worker');

$_->close for map { @$_ } values %held;
$node->is_idle('in the end nothing is left of any request');
$node->is_idle('in neither zone', '/brief/');
add_all();
my $sum = parallel(8, 100, $node->url('/'));
is_deeply($sum->{status}, { 200 => 100 }, 'and all is well');
$node->log_is_clean;
done_testing;
