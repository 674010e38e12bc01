package Bench::Rows;

# The rows of the table: what is compared with what, and the bar.
#
# A measure is one system under full load, written SYSTEM/SERVERS/WORKERS/CONNECTIONS (the
# upstream connections that a worker keeps; 0: as the system does by itself). After that may
# stand what is different while it is loaded: refresh or ok when 1,000 requests a second of that
# kind go beside the load, shared when the load may use the worker's processor too.
# A row that is a race has
#   ours, theirs   measures; of several the best counts (settings of one system)
#   figure         cpu (a request) or rps
#   most or least  the bar for the ratio ours / theirs; its bound must keep it, not the
#                  ratio alone. None: for information
#   which          1: there is no bar, and it says which side costs less
# and one that is not has run (a sub that gives a result as in Bench::Single) and most.

use strict;
use warnings;

use Bench::Cpu qw(is_apart);
use Bench::Fleet;
use Bench::Method;
use Bench::Probes;
use Bench::Single;
use Bench::Sync;
use Exporter 'import';

our @EXPORT_OK = qw(rows row_names system_of system_name is_close has_bar);

# The settings of stock keepalive that are tried, by the number of servers.
my %KEEPALIVE = (3 => [64], 100 => [ 64, 1000 ], 1_000 => [ 64, 1000 ], 10_000 => [ 64, 1000, 10_000 ]);

# registry_keepalive: room for a connection to each server, and not less than a thousand.
sub _connections { my ($servers) = @_; return $servers > 1000 ? $servers : 1000 }

my %CPU_BAR = (
    3      => { 1 => 1.03,     2 => 1.03 },
    100    => { 1 => 0.95,     2 => 0.95 },
    1_000  => { 1 => 0.60,     2 => 0.60 },
    10_000 => { 1 => 1 / 25,   2 => 1 / 40 },
);

my @NAMES = (
    [ stock      => 'CPU a request against stock least_conn, for each number of servers' ],
    [ throughput => 'requests/s against stock least_conn, 10,000 servers' ],
    [ haproxy    => 'CPU a request against HAProxy leastconn, 10,000 servers' ],
    [ growth     => 'CPU a request with 10,000 servers against 3' ],
    [ workers    => 'CPU a request with two workers against one, 10,000 servers' ],
    [ lua        => 'requests/s against a balancer in Lua over a shared dictionary, 100 servers' ],
    [ heartbeats => 'requests/s beside 1,000 heartbeats/s against beside 1,000/s of return 200' ],
    [ warm       => 'CPU a request of least_conn warm against stock' ],
    [ kept       => 'CPU a request of the module with stock keepalive against stock' ],
    [ control    => 'stock against itself: what this harness adds' ],
    [ methods    => "a worker's CPU time for one choice with each method against stock nginx's same" ],
    [ choice     => 'one choice and release in process (cargo bench)' ],
    [ memory     => 'zone memory a server' ],
    [ fairness   => 'difference between in-flight counts' ],
    [ probes     => 'what health checks of 5,000 servers every 5 seconds cost' ],
    [ redis      => 'CPU a request of a node with Redis on against off' ],
    [ changes    => 'how soon a change is seen on another node' ],
    [ hung       => 'p99 of requests while Redis hangs against while it does not' ],
    [ cluster    => 'how evenly several nodes load servers, with Redis on against off' ],
    [ join       => 'what 10,000 servers of 50 nodes do to a node that joins' ],
    [ traffic    => 'what passes to Redis, and what heartbeats of 10,000 servers cost it' ],
    [ slices     => 'longest lock hold and slice of the event loop: status and mass expiry' ],
);

sub row_names { return @NAMES }

sub _thousands { my ($n) = @_; 1 while $n =~ s/^(\d+)(\d{3})/$1,$2/; return $n }

sub _workers { my ($n) = @_; return $n == 1 ? '1 worker' : "$n workers" }

# All settings of stock keepalive for stock nginx, or for the module.
sub _settings {
    my ($system, $servers, $workers) = @_;
    return [ map { "$system/$servers/$workers/$_" } @{ $KEEPALIVE{$servers} } ];
}

# The module with its own pool.
sub _pool {
    my ($system, $servers, $workers) = @_;
    return [ join '/', $system, $servers, $workers, _connections($servers) ];
}

# The rows for the names wanted (a hash), these numbers of workers and of servers.
sub rows {
    my ($wanted, $workers, $servers, %opt) = @_;
    my %has_servers = map { $_ => 1 } @$servers;
    my %has_workers = map { $_ => 1 } @$workers;
    my @rows;
    my $race = sub {
        my ($name, $title, %row) = @_;
        push @rows, { name => $name, title => $title, %row } if $wanted->{$name};
    };
    my @sizes = map { my $n = $_; map { [ $n, $_ ] } @$workers } @$servers;

    for (@sizes) {
        my ($n, $w) = @$_;
        $race->('stock', 'CPU, stock, ' . _thousands($n) . ' servers, ' . _workers($w),
            ours => _pool('module', $n, $w), theirs => _settings('stock', $n, $w),
            figure => 'cpu', most => $CPU_BAR{$n}{$w});
        # A pool as large as most configurations have, too small for so many servers.
        $race->('stock', 'CPU, stock with "keepalive 64", ' . _thousands($n) . ' servers, ' . _workers($w),
            ours => _pool('module', $n, $w), theirs => ["stock/$n/$w/64"], figure => 'cpu') if $n == 100;
    }
    if ($has_servers{10_000}) {
        for my $w (@$workers) {
            $race->('throughput', 'requests/s, stock, 10,000 servers, ' . _workers($w),
                ours => _pool('module', 10_000, $w), theirs => _settings('stock', 10_000, $w),
                figure => 'rps', least => 25);
        }
        for my $w (@$workers) {
            $race->('haproxy', 'CPU, HAProxy, 10,000 servers, ' . ($w == 1 ? '1 worker' : "$w workers or threads"),
                ours => _pool('module', 10_000, $w), theirs => ["haproxy/10000/$w/10000"],
                figure => 'cpu', most => 1);
        }
        for my $w (@$workers) {
            $race->('growth', 'CPU, 10,000 servers against 3, ' . _workers($w),
                ours => _pool('module', 10_000, $w), theirs => _pool('module', 3, $w),
                figure => 'cpu', most => 1.5) if $has_servers{3};
        }
        # Two workers share their processors with the load where there are only two: so must one.
        my ($one) = map { is_apart(1) && !is_apart(2) ? "$_/shared" : $_ } @{ _pool('module', 10_000, 1) };
        $race->('workers', 'CPU, 2 workers against 1, 10,000 servers',
            ours => _pool('module', 10_000, 2), theirs => [$one],
            figure => 'cpu', most => 1.1) if $has_workers{1} && $has_workers{2};
    }
    if ($has_servers{100} && $has_workers{1}) {
        my @ours = (ours => _pool('module', 100, 1), figure => 'rps');
        $race->('lua', 'requests/s, shared-dict Lua as written, 100 servers, 1 worker', @ours,
            theirs => ['lua/100/1/0'], least => 8);
        $race->('lua', 'requests/s, the same Lua with keepalive 1000', @ours, theirs => ['lua/100/1/1000']);
    }
    if ($has_servers{1_000}) {
        for my $w (@$workers) {
            my ($measure) = @{ _pool('module', 1_000, $w) };
            my @pair = (ours => ["$measure/refresh"], theirs => ["$measure/ok"]);
            $race->('heartbeats', 'requests/s beside heartbeats, 1,000 servers, ' . _workers($w),
                @pair, figure => 'rps', least => 0.97);
            # Said in CPU time, on which other programs have less influence.
            $race->('heartbeats', 'CPU beside heartbeats, 1,000 servers, ' . _workers($w), @pair, figure => 'cpu');
        }
    }

    # Nothing hangs on these: what else the module can be set to.
    for (@sizes) {
        my ($n, $w) = @$_;
        $race->('warm', 'CPU, stock, "least_conn warm", ' . _thousands($n) . ' servers, ' . _workers($w),
            ours => _pool('warm', $n, $w), theirs => _settings('stock', $n, $w), figure => 'cpu');
    }
    for (@sizes) {
        my ($n, $w) = @$_;
        $race->('kept', 'CPU, stock, both with "keepalive", ' . _thousands($n) . ' servers, ' . _workers($w),
            ours => _settings('kept', $n, $w), theirs => _settings('stock', $n, $w), figure => 'cpu');
    }
    for (grep { $_->[0] <= 100 } @sizes) {
        my ($n, $w) = @$_;
        my $keepalive = $KEEPALIVE{$n}[-1];
        $race->('control', 'CPU, stock against itself, ' . _thousands($n) . ' servers, ' . _workers($w),
            ours => ["control/$n/$w/$keepalive"], theirs => ["stock/$n/$w/$keepalive"], figure => 'cpu');
    }

    for my $n (grep { $has_servers{$_} && $has_workers{1} } 3, 100) {
        $race->('redis', 'CPU, Redis on against off, ' . _thousands($n) . ' servers, 1 worker',
            ours => _pool('redis', $n, 1), theirs => _pool('module', $n, 1), figure => 'cpu', most => 1.03);
    }
    push @rows, grep { $wanted->{ $_->{name} } } _sync_rows($opt{quick});

    my ($starts, $rounds) = $opt{quick} ? (1, 1) : (4, 5);
    my $choices = sub {
        my ($title, $method, $n, @against) = @_;
        $race->('methods', $title . ', ' . _thousands($n) . ' servers', which => 1, of => ' ns', seconds => $starts * (1.5 + 0.5 * $rounds),
            run => sub { Bench::Method::choices($method, $n, $starts, $rounds, @against) });
    };
    my @counts = grep { $_ != 100 } @$servers;
    for my $method (Bench::Method::methods()) { $choices->("a choice, \"$method\"", $method, $_) for @counts }
    $choices->('a choice, stock twice, "round_robin"', 'round_robin', $_, 'control', 'stock') for @counts;

    $race->('choice', 'one choice and release, 10,000 servers', most => 300, unit => ' ns', seconds => 240,
        run => sub { Bench::Single::choice($opt{quick}) });
    # log 10,000 / log 3
    $race->('choice', 'the same, 10,000 servers against 3', most => 8.4, unit => ' times', seconds => 0,
        run => sub { Bench::Single::choice_growth($opt{quick}) });
    $race->('memory', 'zone memory a server', most => 800, unit => ' bytes', seconds => 12,
        run => sub { Bench::Single::memory() });
    for my $w (@$workers) {
        $race->('fairness', 'fairness: most minus least in flight, ' . _workers($w), most => 1, unit => '', seconds => 5,
            run => sub { Bench::Single::fairness($w, $opt{quick} ? 2 : 4) });
    }
    my @windows = $opt{quick} ? (1, 5) : (3, 20);
    for my $type ('http', 'tcp') {
        $race->('probes', "health checks of 5,000 servers, type=$type", most => 10, unit => ' %',
            seconds => $windows[0] * $windows[1] + 10, run => sub { Bench::Probes::checks($type, @windows) });
    }
    $race->('slices', 'longest slice or lock hold, 10,000 servers', most => 1, unit => ' ms', seconds => 30,
        run => sub { Bench::Single::slices(10_000) });
    return @rows;
}

# Several nodes and Redis, each row with processes of its own.
sub _sync_rows {
    my ($quick) = @_;
    my $row = sub {
        my ($name, $title, $seconds, $run, %row) = @_;
        my $if_redis = sub { my $why = Bench::Cluster::missing(); return $why ? { missing => $why } : $run->() };
        return { name => $name, title => $title, seconds => $seconds, run => $if_redis, %row };
    };
    my ($changes, $lost) = $quick ? (50, 10) : (1000, 100);
    my @rows = (
        $row->('changes', 'a change is seen on another node: median', $changes / 20, sub { Bench::Sync::changes($changes, 0.5) },
            most => 100, unit => ' ms'),
        $row->('changes', 'the same: p99', 0, sub { Bench::Sync::changes($changes, 0.99) }, unit => ' ms'),
        $row->('changes', 'the same with its message lost: longest', $lost / 2, sub { Bench::Sync::lost_changes($lost) },
            most => $Bench::Sync::INTERVAL, unit => ' ms'),
    );
    # As long as the issue's fault.
    my @hung = $quick ? (2, 3) : (12, 10);
    for ([ proxied => 'p99 of proxied requests' ], [ api => 'p99 of API requests' ]) {
        my ($kind, $title) = @$_;
        push @rows, $row->('hung', "$title, Redis hung against not", $kind eq 'proxied' ? $hung[0] * ($hung[1] + 3) : 0,
            sub { Bench::Sync::hung($kind, @hung) }, most => 1.25, of => ' ms');
    }
    # A tenth of redis_timeout: nobody has waited for it.
    push @rows, $row->('hung', 'longest request while Redis hung', 0, sub { Bench::Sync::hung_longest(@hung) },
        most => $Bench::Sync::TIMEOUT / 10, unit => ' ms');

    my ($rounds, $seconds) = $quick ? (1, 2) : (4, 6);
    for ([ 1, 0, 1.05 ], [ 2, 1, 1 ], [ 4, 1, 1 ], [ 2, 0 ], [ 4, 0 ]) {
        my ($nodes, $long, $most) = @$_;
        my $title = $nodes == 1 ? '1 node' : "$nodes nodes, " . ($long ? 'long requests on one' : 'short requests alone');
        push @rows, $row->('cluster', "imbalance, Redis on and off: $title", $rounds * (2 * $seconds + 14 + 2 * $nodes),
            sub { Bench::Sync::balance($nodes, $long, $rounds, $seconds) }, defined $most ? (most => $most) : ());
    }

    my $joins = $quick ? 1 : 12;
    push @rows,
        $row->('join', 'a node learns 10,000 servers: longest slice or lock hold', 40 + $joins * 8,
            sub { Bench::Fleet::join_slices($joins) }, most => 1, unit => ' ms'),
        $row->('join', 'the same: longest delay of a request, more than of a twin', 0,
            sub { Bench::Fleet::join_longest($joins) }, most => 1, unit => ' ms'),
        $row->('join', 'the same: p99.9 of requests, more than of a twin', 0,
            sub { Bench::Fleet::join_p999($joins) }, most => 1, unit => ' ms'),
        $row->('join', 'the same: until it has all', 0, sub { Bench::Fleet::join_time($joins) }, unit => ' s'),
        $row->('join', 'longest step of 50 simulated nodes, 10,000 servers', 0,
            sub { Bench::Fleet::join_steps($joins) }, most => 1, unit => ' ms');

    my $phase = $quick ? 2 : 20;
    push @rows,
        $row->('traffic', 'traffic of 10,000 servers: 1,000 requests/s against at rest', 14 * $phase + 80,
            sub { Bench::Fleet::traffic('requests', $phase) }, most => 1.2, unit => ' times'),
        $row->('traffic', 'the same: 128 requests at a time of 0.2 s', 0, sub { Bench::Fleet::traffic('slow', $phase) }, unit => ''),
        $row->('traffic', 'the same: 1,000 heartbeats/s', 0, sub { Bench::Fleet::traffic('beats', $phase) }, unit => ''),
        $row->('traffic', 'traffic of a change, 10,000 servers against 1,000', 0,
            sub { Bench::Fleet::traffic_of_change($phase) }, most => 1.2, unit => ' times'),
        $row->('traffic', 'traffic at rest, 10,000 servers against 1,000', 0, sub { Bench::Fleet::traffic_at_rest($phase) }, unit => ''),
        $row->('traffic', 'heartbeats of 10,000 servers: CPU of redis-server', 0,
            sub { Bench::Fleet::beats('redis', $phase) }, unit => ''),
        $row->('traffic', 'the same: CPU of the node that gets them', 0, sub { Bench::Fleet::beats('node0', $phase) }, unit => ''),
        $row->('traffic', 'the same: CPU of another node', 0, sub { Bench::Fleet::beats('node1', $phase) }, unit => '');
    return @rows;
}

# The parts of a measure.
sub system_of {
    my ($measure) = @_;
    my %part;
    @part{qw(system servers workers keepalive beside)} = split m{/}, $measure;
    return %part;
}

# The measure without what goes beside it: the system that must run for it.
sub system_name {
    my ($measure) = @_;
    return join '/', (split m{/}, $measure)[ 0 .. 3 ];
}

# The measures that some row's bar applies to, or that show what the harness adds to those.
sub has_bar {
    my (@rows) = @_;
    my %has = map { $_ => 1 } map { @{ $_->{ours} }, @{ $_->{theirs} } }
        grep { $_->{theirs} && (defined $_->{most} || defined $_->{least} || $_->{name} eq 'control') } @rows;
    return keys %has;
}

# Whether the bars for it are so near 1 that it is measured there and back in each round,
# and by new processes every few rounds.
sub is_close {
    my ($measure) = @_;
    my %part = system_of($measure);
    return $part{system} ne 'lua' && ($part{servers} <= 100 || ($part{beside} || '') =~ /^(?:refresh|ok)$/);
}

1;
