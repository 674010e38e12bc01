# A worker that was stopped for a while, or whose machine slept, does not take the time that it lost for the servers'.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/health.pl";

our ($node, $PIECES);
my $COUNT = 20;
my @once = ('fails=1', 'passes=1', 'interval=' . ms(0.05));
my $certificates = RegistryTest::Redis->certificates;
for my $workers (1, 2) {
    subtest "$workers worker" . ($workers > 1 ? 's, one of which stalls' : '') => sub {
        my $probed = RegistryTest->probed(count => $COUNT, how => $PIECES);
        my $plain = RegistryTest->probed(count => $COUNT, how => 'ok');
        my $tls = RegistryTest->nginx(modules => [], workers => 1, worker_connections => 2048, http => "access_log off;
            server { listen 127.0.0.1:%%PORT%% ssl; ssl_certificate $certificates/server.pem; ssl_certificate_key $certificates/server.key;
                location / { return 200 well; } }");
        $node = checked({
            http  => [ @once, 'timeout=' . ms(0.4), 'body~well' ],
            tcp   => [ @once, 'type=tcp', 'timeout=' . ms(0.4) ],
            https => [ @once, 'type=https', 'timeout=' . ms(0.4), 'body~well' ],
        }, workers => $workers, worker_connections => 2048);
        # Unhealthy ones go on to be, whatever happens.
        my $gone = RegistryTest->backend(start => 0);
        call('http', add => $_) for map({ $probed->address($_) } 0 .. $COUNT - 1), $gone->address;
        call('tcp', add => $plain->address($_)) for 0 .. $COUNT - 1;
        # As many names of the same server.
        (my $port = $tls->address) =~ s/.*://;
        call('https', add => "127.0.0.$_:$port") for 1;
        after_checks('http', $probed->address($COUNT - 1), 2);
        after_checks('https', "127.0.0.1:$port", 2);
        becomes('http', $gone, 'unhealthy', 'one that is not there is unhealthy');
        my $from = $node->log_size;

        if ($workers > 1) {
            my ($worker) = $node->workers;
            kill 'STOP', $worker;
            sleep 2 * time_scale();
            my $seen = $probed->count;
            sleep 1.3 * time_scale();
            my %checked = map { $_->{who} => 1 } $probed->log($seen);
            kill 'CONT', $worker;
            is(scalar keys %checked, $COUNT, 'the other worker checks all servers meanwhile');
        }
        for my $seconds (($workers > 1 ? 2 : 5) * time_scale(), (0.6 * time_scale()) x 3) {
            # All of them, as when the machine sleeps.
            kill 'STOP', $node->workers;
            sleep $seconds;
            kill 'CONT', $node->workers;
            sleep 0.2 * time_scale();
        }
        my @count = map { $probed->count + $_->count } $plain;
        ok(wait_until(sub { $probed->count + $plain->count > $count[0] + 4 * $COUNT }), 'checks go on');
        my @lines = grep { !/\Q${\ $gone->address}\E/ } $node->grep_log(qr/registry "\w+": server \S+ (?:un)?healthy/, $from);
        is(scalar @lines, 0, 'no server changed') or diag(join "\n", @lines[0 .. ($#lines > 5 ? 5 : $#lines)]);
        for my $registry (qw(http tcp https)) {
            local $node->{api} = "/$registry/";
            my $servers = servers($node, $registry);
            my @failed = grep { $_->{health}{fails} && $_->{addr} ne $gone->address } values %$servers;
            is(scalar @failed, 0, "$registry: no check failed") or diag(join ', ', map { "$_->{addr} $_->{health}{fails} of $_->{health}{checks}" } @failed);
        }
        is(state('http', $gone), 'unhealthy', 'the one that is gone is still known to be');
        $_->stop for $probed, $plain;
        ok(wait_until(sub { state('http', $probed->address(0)) eq 'unhealthy' }), 'and who goes is noticed');
        $node->log_is_clean;
        $node->quit;
        $tls->quit;
    };
}

done_testing;
