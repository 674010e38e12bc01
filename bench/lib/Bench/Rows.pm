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
# and one that is not has run (a sub that gives a result as in Bench::Single) and most.

use strict;
use warnings;

use Bench::Cpu qw(is_apart);
use Bench::Single;
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
    [ choice     => 'one choice and release in process (cargo bench)' ],
    [ memory     => 'zone memory a server' ],
    [ fairness   => 'difference between in-flight counts' ],
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

    $race->('choice', 'one choice and release, 10,000 servers', most => 300, unit => ' ns', seconds => 60,
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
    $race->('slices', 'longest slice or lock hold, 10,000 servers', most => 1, unit => ' ms', seconds => 30,
        run => sub { Bench::Single::slices(10_000) });
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
