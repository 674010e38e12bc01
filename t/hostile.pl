# What the files hostile-*.t share: many requests at a time, and what they leave in the workers.

use strict;
use warnings;

# Bytes of requests, so many in all, over one connection at a time in batches that are sent as a whole;
# returns how often each status came back. A server that closes is connected to again.
sub flood {
    my ($node, @requests) = @_;
    my (%statuses, $client);
    while (my @batch = splice @requests, 0, 100) {
        $client ||= $node->client;
        $client->send(join '', @batch);
        my ($got, $count) = ('', 0);
        while ($count < @batch) {
            my $more = eval { $client->read_some };
            if (!defined $more) { $statuses{'closed'} += @batch - $count; undef $client; last }
            $got .= $more;
            # Up to the last whole reply: the body of each is one line, or chunks of one.
            while ($got =~ m{\AHTTP/1\.1 (\d{3}) (.*?)\r\n\r\n}s) {
                my ($status, $head) = ($1, $2);
                my $body = $head =~ /^Transfer-Encoding: chunked/mi ? qr/.*?\r\n0\r\n\r\n/s : qr/[^\n]*\n/;
                $got =~ s{\A.*?\r\n\r\n$body}{}s or last;
                $statuses{$status}++;
                $count++;
                if ($head =~ /^Connection: close/mi) {
                    $statuses{'closed'} += @batch - $count if $count < @batch;
                    undef $client;
                    $count = @batch;
                }
            }
        }
    }
    return \%statuses;
}

sub request {
    my ($path, $body, @headers) = @_;
    return "POST $path HTTP/1.1\r\nHost: a\r\nContent-Length: " . length($body) . "\r\n"
        . join('', map { "$_\r\n" } @headers) . "\r\n$body";
}

# The private memory of the workers, in kB: what is resident, and all that was asked for. Pages of the zone
# count as a worker's own once it has touched them; here they don't.
sub memory {
    my ($node) = @_;
    my ($resident, $data) = (0, 0);
    for my $pid ($node->workers) {
        my $status = slurp("/proc/$pid/status");
        my ($anonymous) = $status =~ /^RssAnon:\s+(\d+)/m or die "no RssAnon in /proc/$pid/status\n";
        my ($all) = $status =~ /^VmData:\s+(\d+)/m;
        $resident += $anonymous;
        $data += $all;
    }
    return ($resident, $data);
}

# So many, or under valgrind as few as show it all the same.
sub some { my ($count) = @_; return int(($count + time_scale() - 1) / time_scale()) }

# Two tests: that the workers' memory has not grown by more than $most kB from the second round to the last.
# The first ones make what stays: pools of connections, arenas of malloc.
sub stays_flat {
    my ($node, $name, $rounds, $most, $code) = @_;
    # Under valgrind the memory is valgrind's own; what is looked for there are its reports.
    ($rounds, $most) = (1, 1 << 30) if time_scale() > 1;
    $code->() for 1 .. 3;
    my @before = memory($node);
    $code->() for 1 .. $rounds;
    my @after = memory($node);
    my @grown = map { $after[$_] - $before[$_] } 0, 1;
    cmp_ok($grown[0], '<=', $most, "$name: $rounds rounds later no more memory is resident")
        or diag("$before[0] kB before, $after[0] kB after");
    cmp_ok($grown[1], '<=', $most, "$name: nor allocated") or diag("$before[1] kB before, $after[1] kB after");
    return;
}

1;
