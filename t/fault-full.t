# Deaths in a zone that is full: of servers, of heap entries, and of records of who carries which
# requests, so that some are counted outside of these. And one that is full of workers.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $WORKERS = 4;
# On any address of the loopback.
my $everywhere = RegistryTest->backend(name => 'everywhere', host => '0.0.0.0');
my $node;

sub fresh {
    my ($workers) = @_;
    $node = RegistryTest->fault(
        workers => $workers || $WORKERS, worker_connections => 1024,
        http => "registry main 128k { heartbeat_ttl 1h; cleanup_interval 100ms; }
            upstream backend { registry main; }
            upstream round { registry main namespace=backend; registry_balance round_robin; }
            upstream other { registry main namespace=other; }
            upstream other_round { registry main namespace=other; registry_balance round_robin; }
            proxy_buffering off;",
        server => 'location /upstream/ { registry_api main; }
            location / { proxy_pass http://backend; add_header X-Worker $pid; }
            location /round { proxy_pass http://round; }
            location /other/ { proxy_pass http://other; }
            location /other/round { proxy_pass http://other_round; }',
    );
    return;
}
# One server after the other, until there is no room or the call is not answered; how many.
sub fill {
    my (@spaces) = @_;
    for my $n (1 .. 250) {
        my $status = api($node, 'add', { ns => $spaces[ $n % @spaces ], host => "127.0.1.$n", port => $everywhere->port, max_conns => 0 })->{status};
        return $n - 1 if $status != 200;
    }
    return;
}

subtest 'heap.compacting' => sub {
    fresh();
    api($node, 'add', { ns => $_, host => '127.0.0.9', port => $everywhere->port, max_conns => 0 }) for qw(backend other);
    $node->get($_) for '/', '/round', '/other/', '/other/round';
    $node->arm('heap.compacting:1:worker');
    my $filled = fill(qw(backend other));
    ok($node->died, 'a worker dies while it moves the heaps together');
    $node->is_whole(0, 'the zone is whole');
    my $known = status($node, 'backend')->{total} + status($node, 'other')->{total};
    ok($known >= 2 + $filled, 'no server is lost') or diag("$known of $filled");
    fill(qw(backend other));
    $node->is_whole(0, 'and can be filled');
    $node->log_is_clean;
};

subtest 'more workers than the zone can tell apart' => sub {
    fresh(66);
    fill('backend');
    is(scalar($node->grep_log(qr/\[warn\] .*registry "main": 64 workers, .* give the registry a larger size/)), 2, 'the log says so, of each');
    is($node->checked->{workers}, 64, 'the others have joined');
    my $held = $node->held(150, 40);
    $node->is_whole(scalar(map { @$_ } values %$held), 'the requests of all are counted');
    $_->close for map { @$_ } values %$held;
    ok(wait_until(sub { $node->checked->{connections} == 0 }), 'and counted off');
    $node->log_is_clean;
    $node->quit;
};

fresh();
my $servers = fill('backend');
my %held;
# The requests of workers that live.
sub held_now {
    my %alive = map { $_ => 1 } $node->workers;
    my $n = 0;
    $_->close for map { @$_ } delete @held{ grep { !$alive{$_} } keys %held };
    $n += @$_ for values %held;
    return $n;
}
# As many requests that some are counted outside, in each worker.
sub hold {
    for (1 .. 40) {
        my $data = $node->checked;
        last if $data->{outside} >= 40 && 4 * keys(%held) == 4 * $WORKERS && !grep { @$_ < 30 } values %held;
        my $more = $node->held(40);
        push @{ $held{$_} }, @{ $more->{$_} } for keys %$more;
    }
    return held_now();
}
# Counts outside are stated again by each worker, at its next request or cleanup.
sub settles {
    my ($name) = @_;
    my ($wanted, $data) = held_now();
    wait_until(sub { ($data = $node->checked)->{connections} == $wanted });
    return is_deeply([ $data->{problems}, $data->{connections} ], [ [], $wanted ], $name);
}
sub victim { my ($most) = sort { @{ $held{$b} } <=> @{ $held{$a} } } keys %held; return $most }

my %how = (
    book => sub { return },
    # All but so few that some of those must have found no room.
    unbook => sub { $_->close for map { splice @$_, 5 } values %held },
    leave => sub { kill 'TERM', victim() },
    recount => \&kill_one,
    restate => \&kill_one,
);
sub kill_one { $node->{killed}++; kill 'KILL', victim(); return }

for my $point ($node->points_of('full')) {
    next if $point eq 'heap.compacting';
    my ($change) = $point =~ /^(\w+)/;
    subtest $point => sub {
        cmp_ok(hold(), '>', $servers, 'requests are under way');
        cmp_ok($node->checked->{outside}, '>=', 40, 'more than there are records for');
        $node->arm("$point:1:worker");
        $how{$change}->();
        # What else can reach the point: requests come and go.
        parallel(4, 40, $node->url('/'));
        ok($node->died, 'a worker dies');
        settles('the requests of the living are counted');
    };
}

$_->close for map { @$_ } values %held;
$node->is_idle('in the end nothing is left of any request');
is(parallel(8, 100, $node->url('/'))->{status}{200}, 100, 'and all is well');
$node->log_is_clean;
done_testing;
