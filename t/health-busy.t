# A worker that stalls again and again: what it finds is about the servers all the same.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/health.pl";

our ($node, $PIECES);
my $COUNT = 20;
my @once = ('fails=1', 'passes=1', 'interval=' . ms(0.05));

# Stops the worker for so long, again and again, until what comes back is called.
sub stalling {
    my ($seconds, $between) = @_;
    my ($worker) = $node->workers;
    my $pid = RegistryTest::Process::fork_child(sub {
        while (1) { kill 'STOP', $worker; sleep $seconds; kill 'CONT', $worker; sleep $between }
    });
    return sub { RegistryTest::Process::stop_process($pid, KILL => 1); kill 'CONT', $worker };
}

subtest 'a worker that stalls again and again' => sub {
    my $silent = RegistryTest->probed(how => 'silent');
    my $well = RegistryTest->probed(count => $COUNT, how => $PIECES);
    $node = checked({ http => [ @once, 'timeout=' . ms(0.4), 'body~well' ] }, workers => 1);
    call('http', add => $_) for map { $well->address($_) } 0 .. $COUNT - 1;
    after_checks('http', $well->address(0), 1);
    # Each check meets a stall of more than a quarter of its time.
    my $goes_on = stalling((0.15 * time_scale()) x 2);
    call('http', add => $silent);
    becomes('http', $silent, 'unhealthy', 'still finds out who does not answer', 10 * time_scale());
    is(health('http', $silent)->{last_error}, 'timeout', 'for that reason');
    sleep 2 * time_scale();
    local $node->{api} = '/http/';
    my @failed = grep { $_->{health}{fails} && $_->{addr} ne $silent->address } values %{ servers($node, 'http') };
    is(scalar @failed, 0, 'and who does is well') or diag(join ', ', map { "$_->{addr} $_->{health}{fails} of $_->{health}{checks}" } @failed);
    $goes_on->();
    # It hardly looks at all.
    my $hardly = stalling(0.6 * time_scale(), 0.05 * time_scale());
    my $from = $node->log_size;
    sleep 4 * time_scale();
    $hardly->();
    is(scalar($node->grep_log(qr/unhealthy/, $from)), 0, 'one that hardly looks finds nobody unhealthy');
};

$node->log_is_clean;
done_testing;
