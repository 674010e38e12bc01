# Each server is checked by one worker at a time, the checks are spread over workers and time, and of a worker that
# dies the others take over. Unix sockets tell who asks.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/health.pl";

our ($node, $INTERVAL);
my ($COUNT, $WORKERS) = (40, 4);
my $PERIOD = 0.2 * time_scale();
my $probed = RegistryTest->probed(count => $COUNT, unix => 1);
my $servers = join ' ', map { 'server ' . $probed->address($_) . ';' } 0 .. $COUNT - 1;
sub fresh {
    my (%opt) = @_;
    my $check = delete $opt{check} || [ 'interval=' . ms(0.2), 'timeout=' . ms(1), 'fails=1', 'passes=1' ];
    $node = checked({ main => { check => $check, upstream => $servers } }, workers => $WORKERS, %opt);
    return;
}

# What was asked in the last so many seconds: for each server the times.
sub asked {
    my ($from) = @_;
    my @times = map { [] } 1 .. $COUNT;
    push @{ $times[ $_->{who} ] }, $_->{begun} for $probed->log($from);
    return @times;
}
# Two tests: each server is asked as often as the interval says (within a part of it), and never twice in
# less than half of it.
sub evenly {
    my ($from, $seconds, $name, %opt) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my @times = asked($from);
    my @counts = sort { $a <=> $b } map { scalar @$_ } @times;
    my $expected = $seconds / $PERIOD;
    my ($low, $high) = ($expected * (1 - ($opt{less} || 0.35)) - 1, $expected * 1.2 + 1);
    ok($counts[0] >= $low && $counts[-1] <= $high, "$name: $counts[0] to $counts[-1] checks of each in $seconds s") or diag("expected $expected");
    my @gaps = map { my $t = $_; map { $t->[$_] - $t->[ $_ - 1 ] } 1 .. $#$t } @times;
    my ($least) = sort { $a <=> $b } @gaps;
    cmp_ok($least, '>', $PERIOD * 0.4, "$name: never two in a moment") or diag(scalar(grep { $_ <= $PERIOD * 0.4 } @gaps) . ' of ' . @gaps);
    return;
}

subtest 'spread over workers and over time' => sub {
    my $from = $probed->count;
    fresh();
    my %pids = map { $_ => 1 } $node->workers;
    ok(wait_until(sub { !grep { $_ == 0 } $probed->counts }), 'all are checked');
    sleep 2 * $PERIOD;
    my $start = $probed->count;
    sleep 10 * $PERIOD;
    evenly($start, 10 * $PERIOD, 'steady');
    my @log = $probed->log($start);
    my (%by, %of);
    for (@log) { $by{ $_->{pid} }++; $of{ $_->{who} }{ $_->{pid} } = 1 }
    is(join(' ', sort keys %by), join(' ', sort keys %pids), 'every worker makes some');
    my ($least, @others) = sort { $a <=> $b } values %by;
    cmp_ok($least, '>=', 0.5 * @log / $WORKERS, 'and its share') or diag(join ' ', %by);
    is(scalar(grep { keys %{ $of{$_} } != 1 } keys %of), 0, 'each server is checked by the same one');
    is($probed->most_at_once, 1, 'never two at a time');

    # A tenth of an interval has about a tenth of the checks.
    my $first = $log[0]{begun};
    my %slots;
    $slots{ int(($_->{begun} - $first) / ($PERIOD / 10)) }++ for @log;
    my ($most) = sort { $b <=> $a } values %slots;
    cmp_ok($most, '<=', 0.75 * $COUNT, "in a tenth of an interval never more than $most of $COUNT");
    $node->log_is_clean;
};

subtest 'a worker dies' => sub {
    my @workers = $node->workers;
    my $from = $probed->count;
    $node->kill_worker($workers[1]);
    sleep 5 * $PERIOD;
    my @late = asked($from);
    is(scalar(grep { !@$_ } @late), 0, 'all go on to be checked');
    my @gaps = map { my $t = $_; map { $t->[$_] - $t->[ $_ - 1 ] } 1 .. $#$t } @late;
    my ($longest) = sort { $b <=> $a } @gaps;
    cmp_ok($longest, '<', 3 * $PERIOD, sprintf 'within a moment (%.0f ms)', 1000 * $longest);
    my $start = $probed->count;
    sleep 5 * $PERIOD;
    evenly($start, 5 * $PERIOD, 'then');
    my %by;
    $by{ $_->{pid} }++ for $probed->log($start);
    is(join(' ', sort keys %by), join(' ', sort $node->workers), 'the new worker has its share');
    is(scalar($node->grep_log(qr/unhealthy/)), 0, 'no server became unhealthy');
    $node->log_is_clean(allow => [ [ qr/\[alert\] .*worker process \d+ exited on signal 9/, 1 ] ]);
};

subtest 'nobody replaces it' => sub {
    # A master that is stopped replaces nobody.
    my @workers = $node->workers;
    kill 'STOP', $node->pid;
    kill 'KILL', $workers[0];
    wait_until(sub { !alive($workers[0]) });
    my $from = $probed->count;
    ok(wait_until(sub { !grep { !@$_ } asked($from) }, 10 * time_scale()), 'the others take over what it checked');
    sleep 2 * time_scale();
    my $start = $probed->count;
    sleep 6 * $PERIOD;
    my @log = $probed->log($start);
    is(scalar(grep { !@$_ } asked($start)), 0, 'and go on');
    my %by;
    $by{ $_->{pid} }++ for @log;
    is(join(' ', sort keys %by), join(' ', sort @workers[1 .. $#workers]), 'all three');
    is($probed->most_at_once, 1, 'never two at a time');
    kill 'CONT', $node->pid;
    ok(wait_until(sub { $node->workers == $WORKERS }), 'the master goes on');
    $node->log_is_clean(allow => [ [ qr/\[alert\] .*worker process \d+ exited on signal 9/, 2 ] ]);
};

subtest 'a worker dies in the middle of checks' => sub {
    $probed->behave('after ' . 0.15 * time_scale());
    sleep 2 * $PERIOD;
    for my $round (1 .. 3) {
        my ($worker) = $node->workers;
        $node->kill_worker($worker);
        sleep $PERIOD;
    }
    my $from = $probed->count;
    # A check that nobody ends is taken for lost after its timeout, and a moment.
    ok(wait_until(sub { !grep { !@$_ } asked($from) }, 10 * time_scale()), 'what they had begun is begun anew');
    is(scalar($node->grep_log(qr/unhealthy/)), 0, 'and no server became unhealthy for it');
    $probed->behave('ok');
    $node->log_is_clean(allow => [ [ qr/\[alert\] .*worker process \d+ exited on signal 9/, 5 ] ]);
};

subtest 'a worker ends well' => sub {
    my @workers = $node->workers;
    my $from = $probed->count;
    kill 'QUIT', $workers[2];
    ok(wait_until(sub { !alive($workers[2]) }), 'one is told to end, and ends');
    sleep 5 * $PERIOD;
    is(scalar(grep { !@$_ } asked($from)), 0, 'its servers are checked by others');
    $node->quit;
};

subtest 'with jitter' => sub {
    fresh(check => [ 'interval=' . ms(0.2), 'jitter=' . ms(0.2), 'fails=1', 'passes=1' ]);
    my $from = $probed->count;
    ok(wait_until(sub { !grep { !@$_ } asked($from) }), 'all are checked');
    my $start = $probed->count;
    sleep 10 * $PERIOD;
    my @times = asked($start);
    my $expected = 10 * $COUNT;
    my $made = 0;
    $made += @$_ for @times;
    ok($made > 0.75 * $expected && $made < 1.1 * $expected, "as many as without ($made of $expected)");
    my @gaps = sort { $a <=> $b } map { my $t = $_; map { $t->[$_] - $t->[ $_ - 1 ] } 1 .. $#$t } @times;
    my ($low, $high) = @gaps[ 0.1 * @gaps, 0.9 * @gaps ];
    ok($low < 0.75 * $PERIOD && $high > 1.2 * $PERIOD, sprintf 'at times of no order: %.0f to %.0f ms apart', 1000 * $low, 1000 * $high);
    is($probed->most_at_once, 1, 'never two at a time');
    $node->log_is_clean;
    $node->quit;
};

subtest 'all in one process' => sub {
    fresh(master => 0, workers => 1);
    my $from = $probed->count;
    ok(wait_until(sub { !grep { !@$_ } asked($from) }), 'all are checked');
    sleep 2 * $PERIOD;
    my $start = $probed->count;
    sleep 5 * $PERIOD;
    evenly($start, 5 * $PERIOD, 'master_process off');
    $node->log_is_clean;
};

done_testing;
