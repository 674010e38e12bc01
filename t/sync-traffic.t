# What a node says to Redis grows with what changes, and neither with the servers that there are nor with
# the requests that they serve.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

require "$FindBin::Bin/sync.pl";

our ($INTERVAL, $SLACK);
my $SERVERS = 1000;
my $redis = RegistryTest->redis;
my $proxy = RegistryTest->proxy($redis->address);
my ($one, $two) = my @nodes = map { node(redis => $redis->url(port => $_->port)) } $proxy, $redis;
my $backend = RegistryTest->backend(name => 'web');
connected($_) for @nodes;
change($one, add => $backend, max_conns => 0, ns => 'other');

# Bytes and commands while the code runs, for at least so many intervals; per interval.
sub traffic {
    my ($intervals, $code) = @_;
    my ($before, $commands, $since) = ($proxy->stats, $redis->info('stats')->{total_commands_processed}, time);
    $code->();
    my $left = $since + $intervals * $INTERVAL - time;
    sleep $left if $left > 0;
    my $count = (time - $since) / $INTERVAL;
    my $after = $proxy->stats;
    return {
        bytes => ($after->{up} + $after->{down} - $before->{up} - $before->{down}) / $count,
        commands => ($redis->info('stats')->{total_commands_processed} - $commands) / $count,
        connections => $after->{connections} - $before->{connections},
    };
}
# Nothing is under way any more.
sub quiet {
    pushed($_, 20 * time_scale()) for @nodes;
    my $last = 0;
    return wait_until(sub {
        my $stats = $proxy->stats;
        my $moved = $stats->{down} - $last;
        $last = $stats->{down};
        sleep $INTERVAL;
        return $moved < 20_000 * $INTERVAL;
    }, 20 * time_scale());
}

quiet();
my $empty = traffic(10, sub { });
diag(sprintf 'one server, idle: %.0f bytes and %.0f commands (of two nodes) an interval', @$empty{qw(bytes commands)});
is($empty->{connections}, 0, 'no new connection');

change($one, add => "127.0.1.$_", weight => 3) for map { my $host = $_; map { "$host:$_" } 1 .. 100 } 1 .. $SERVERS / 100;
ok(same(\@nodes, 'default', timeout => 20 * time_scale(), expected => sub { @{ $_[0] } == $SERVERS }), "$SERVERS servers on both");
quiet();
my $idle = traffic(10, sub { });
diag(sprintf '%d servers, idle: %.0f bytes and %.0f commands an interval', $SERVERS, @$idle{qw(bytes commands)});
cmp_ok($idle->{bytes}, '<', $empty->{bytes} + 4 * $SERVERS, 'many servers that do not change add little: less than four bytes each');

my $requests = 0;
my $busy = traffic(10, sub { $requests += parallel(4, 500, $one->url('/other/'))->{requests} for 1 .. 4 });
diag(sprintf '%d requests: %.0f bytes and %.0f commands an interval', $requests, @$busy{qw(bytes commands)});
cmp_ok($busy->{bytes} - $idle->{bytes}, '<', 3000, 'nor do requests, beside the count of the server that has them');
is($busy->{connections}, 0, 'no new connection');

my $changes = traffic(10, sub { change($one, weight => '127.0.1.1:1', weight => $_) for 1 .. 100 });
diag(sprintf '100 changes of one server: %.0f bytes and %.0f commands an interval', @$changes{qw(bytes commands)});
cmp_ok($changes->{bytes} * 10, '<', $idle->{bytes} * 10 + 100 * 2500, 'a change costs little, whatever the number of servers');

quiet();
my $beats = traffic(10, sub { change($one, refresh => "127.0.1.1:$_") for 1 .. 100 });
diag(sprintf '100 heartbeats: %.0f bytes and %.0f commands an interval', @$beats{qw(bytes commands)});
cmp_ok($beats->{bytes} * 10, '<', $idle->{bytes} * 10 + 100 * 1000, 'a heartbeat less');

log_says($_, 'used', 'the log') for @nodes;
$_->log_is_clean for @nodes;
done_testing;
