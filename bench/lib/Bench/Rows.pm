package Bench::Rows;

# The rows of the table: what is compared with what, and the bar.
#
# A measure is one system under full load, written SYSTEM/SERVERS/WORKERS/KEEPALIVE, and
# after that /refresh or /ok when 1,000 requests a second of that kind go beside the
# load. A row that is a race has
#   ours, theirs   measures; of several the best counts (settings of one system)
#   figure         cpu (a request) or rps
#   most or least  the bar for the ratio ours / theirs; its bound must keep it, not the
#                  ratio alone
# and one that is not has run (a sub that gives a result as in Bench::Single) and most.

use strict;
use warnings;

use Bench::Single;
use Exporter 'import';

our @EXPORT_OK = qw(rows row_names system_of);

# The settings of the upstream's keepalive to try: the same for both.
my @KEEPALIVE = (64, 1000);

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
    [ choice     => 'one choice and release in process (cargo bench)' ],
    [ memory     => 'zone memory a server' ],
    [ fairness   => 'difference between in-flight counts' ],
    [ slices     => 'longest lock hold and slice of the event loop: status and mass expiry' ],
);

sub row_names { return @NAMES }

sub _thousands { my ($n) = @_; 1 while $n =~ s/^(\d+)(\d{3})/$1,$2/; return $n }

sub _workers { my ($n) = @_; return $n == 1 ? '1 worker' : "$n workers" }

sub _variants {
    my ($system, $servers, $workers) = @_;
    # Three servers never have more than one connection for each client.
    my @keepalive = $servers > 3 ? @KEEPALIVE : $KEEPALIVE[0];
    return [ map { "$system/$servers/$workers/$_" } @keepalive ];
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

    for my $n (@$servers) {
        for my $w (@$workers) {
            $race->('stock', 'CPU, stock, ' . _thousands($n) . ' servers, ' . _workers($w),
                ours => _variants('module', $n, $w), theirs => _variants('stock', $n, $w),
                figure => 'cpu', most => $CPU_BAR{$n}{$w});
        }
    }
    if ($has_servers{10_000}) {
        for my $w (@$workers) {
            $race->('throughput', 'requests/s, stock, 10,000 servers, ' . _workers($w),
                ours => _variants('module', 10_000, $w), theirs => _variants('stock', 10_000, $w),
                figure => 'rps', least => 25);
        }
        $race->('haproxy', 'CPU, HAProxy, 10,000 servers, 1 worker',
            ours => _variants('module', 10_000, 1), theirs => ['haproxy/10000/1/10000'],
            figure => 'cpu', most => 1) if $has_workers{1};
        for my $w (@$workers) {
            $race->('growth', 'CPU, 10,000 servers against 3, ' . _workers($w),
                ours => _variants('module', 10_000, $w), theirs => _variants('module', 3, $w),
                figure => 'cpu', most => 1.5) if $has_servers{3};
        }
        $race->('workers', 'CPU, 2 workers against 1, 10,000 servers',
            ours => _variants('module', 10_000, 2), theirs => _variants('module', 10_000, 1),
            figure => 'cpu', most => 1.1) if $has_workers{1} && $has_workers{2};
    }
    $race->('lua', 'requests/s, shared-dict Lua, 100 servers, 1 worker',
        ours => _variants('module', 100, 1), theirs => _variants('lua', 100, 1),
        figure => 'rps', least => 8) if $has_servers{100} && $has_workers{1};
    if ($has_servers{1_000}) {
        for my $w (@$workers) {
            my @pair = (ours => ["module/1000/$w/1000/refresh"], theirs => ["module/1000/$w/1000/ok"]);
            $race->('heartbeats', 'requests/s beside heartbeats, 1,000 servers, ' . _workers($w),
                @pair, figure => 'rps', least => 0.97);
            # The same said in CPU time, on which other programs have less influence.
            $race->('heartbeats', 'CPU, the same', @pair, figure => 'cpu', most => 1 / 0.97);
        }
    }

    $race->('choice', 'one choice and release, 10,000 servers', most => 300, unit => ' ns', seconds => 60,
        run => sub { Bench::Single::choice($opt{quick}) });
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

1;
