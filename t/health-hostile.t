# Servers that answer health checks with whatever they like: no worker is held up, none grows, no descriptor is
# left behind.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/health.pl";
require "$FindBin::Bin/hostile.pl";

our $node;
# One at a time the same check meets all of them: the status alone, a body that would be gone through back and forth,
# and an expression that any body matches late.
my @check = ('interval=' . ms(0.05), 'timeout=' . ms(0.25), 'fails=1', 'passes=1');
$node = checked({
    status => { check => \@check },
    body   => { check => [ @check, 'body~(a+)+$' ] },
    only   => { check => [ @check, 'status=200', 'body~(x+x+)+y' ] },
}, worker_connections => 1024, log_level => 'warn');
my @scripts = grep { $_ ne 'ok' } sort keys %RegistryTest::BackendProbed::SCRIPTS;
my ($worker) = $node->workers;

my ($most, $usual) = slowest(0.5);
note(sprintf 'with nothing to check %.1f ms at most, %.1f ms for 95 of 100', 1000 * $most, 1000 * $usual);

# One after the other, so that one that is slow shows by its name.
for my $how (@scripts) {
    my $probed = RegistryTest->probed(how => $how);
    for my $registry (qw(status body only)) {
        call($registry, add => $probed->address);
    }
    my ($most, $usual, $count) = slowest(0.2 * time_scale());
    cmp_ok($most, '<', 0.2 * time_scale(), sprintf '%s: %d requests meanwhile, the slowest %.1f ms', $how, $count, 1000 * $most);
    cmp_ok($probed->count, '>', 2, "$how: it was checked");
    call($_, remove => $probed->address) for qw(status body only);
    $probed->stop;
}

# All of them together, for some hundred checks.
my $probed = RegistryTest->probed(count => scalar @scripts);
$probed->behave($scripts[$_], $_) for 0 .. $#scripts;
for my $registry (qw(status body only)) {
    call($registry, add => $probed->address($_)) for 0 .. $#scripts;
}
# The first seconds make what stays: pools, arenas of malloc.
slowest(1.5 * time_scale());
my @workers = $node->workers;
my ($before, $data) = memory($node);
my @open = map { descriptors($_) } @workers;
my $checks = $probed->count;
($most, $usual, my $count) = slowest(3 * time_scale());
my ($after, $more) = memory($node);
my @now = map { descriptors($_) } @workers;
my $made = $probed->count - $checks;
note(sprintf '%d checks, %d requests meanwhile: %.1f ms at most, %.1f ms for 95 of 100; %d kB before, %d kB after; %d MB were sent',
    $made, $count, 1000 * $most, 1000 * $usual, $before, $after, $probed->sent >> 20);
cmp_ok($made, '>', 200, 'some hundred checks together');
cmp_ok($most, '<', 0.2 * time_scale(), 'no request waited for them');
cmp_ok($usual, '<', 0.1 * time_scale(), 'hardly any even for a moment');
cmp_ok($after - $before, '<', 2048 * @workers, 'no more memory is resident') if time_scale() == 1;
cmp_ok($more - $data, '<', 4096 * @workers, 'nor allocated') if time_scale() == 1;
# Each server has one check at a time, in whichever worker.
cmp_ok($now[$_], '<', $open[$_] + 3 * @scripts, "descriptors of worker $_ do not grow") for 0 .. $#workers;
cmp_ok($probed->most_at_once, '<=', 3, 'never two checks of one server in one registry at a time');
is(join(' ', $node->workers), join(' ', @workers), 'the workers are those of the start');

for my $registry (qw(status body only)) {
    call($registry, remove => $probed->address($_)) for 0 .. $#scripts;
}
# What was under way ends with its timeout at the latest.
my $idle = descriptors($workers[0]);
ok(wait_until(sub { !grep { !$_->{ended} } $probed->log($checks) }), 'without servers all connections end');
my $least;
ok(wait_until(sub { ($least = grep { descriptors($workers[$_]) > $open[$_] } 0 .. $#workers) == 0 }), 'and no descriptor is left');
my @last = map { descriptors($_) } @workers;
my $quiet = $probed->count;
sleep 0.3 * time_scale();
is($probed->count, $quiet, 'nobody is checked any more');
my @busy = map { used($_) } @workers;
sleep 1;
my @spent = map { used($workers[$_]) - $busy[$_] } 0 .. $#workers;
cmp_ok($_, '<', 0.15 * time_scale(), 'the worker has nothing to do') for @spent;

my @others = grep { !/\[warn\] .*registry "\w+": server \S+ unhealthy in namespace/ } split /\n/, $node->error_log;
is(join("\n", @others), '', 'the log says of each that it is unhealthy, and nothing more');

$node->log_is_clean;
done_testing;
