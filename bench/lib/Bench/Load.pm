package Bench::Load;

# Load, and what it cost: wrk from outside, CPU time from /proc.

use strict;
use warnings;

use Bench::Cpu qw(cpu_seconds pinned others);
use Exporter 'import';
use RegistryTest::Client ();
use RegistryTest::Process qw(spawn fork_child slurp spew temp_dir wait_until alive exit_status stop_process);
use Time::HiRes qw(time sleep);

our @EXPORT_OK = qw(start_wrk finish_wrk load in_order side_load side_result);

# Client connections of the load.
our $CONNECTIONS = 64;

# What other programs may take of one processor's time before a result counts as disturbed.
our $OTHERS = 0.1;

# Load before each measurement, in seconds, that is not counted.
my $BEFORE = 0.2;

my ($SCRIPT) = __FILE__ =~ m{^(.*)/lib/Bench/Load\.pm$};
$SCRIPT .= '/wrk.lua';

my ($dir, $files);

sub scratch { $dir ||= temp_dir(); return "$dir/" . ++$files }

# A wrk in the background, on these processors; its answer is what finish_wrk returns.
sub start_wrk {
    my ($url, $processors, @arguments) = @_;
    my $out = scratch();
    my @command = (pinned($processors), 'wrk', '-t1', "-c$CONNECTIONS", '-d1h', '-s', $SCRIPT, $url);
    push @command, '--', @arguments if @arguments;
    my $pid = spawn(\@command, stdout => $out, stderr => $out);
    # Its clock starts when it catches SIGINT: before, it ignores that.
    wait_until(sub {
        return 1 if !alive($pid);
        return slurp("/proc/$pid/comm") eq "wrk\n"
            && slurp("/proc/$pid/status") =~ /^SigCgt:\s*[0-9a-f]*([0-9a-f])$/m && hex($1) & 2;
    }, 10, 0.005);
    return { pid => $pid, out => $out, began => time };
}

# Stops it so many seconds after it began (it takes up to 0.1 more) and returns
# { requests, us, rps, errors, ... }. By a signal, as it knows whole seconds only.
sub finish_wrk {
    my ($wrk, $seconds) = @_;
    my $left = $wrk->{began} + $seconds - time;
    sleep $left if $left > 0;
    stop_process($wrk->{pid}, INT => 20);
    my $text = slurp($wrk->{out});
    unlink $wrk->{out};
    my ($line) = $text =~ /^result (.*)/m or die 'wrk failed (status ' . (defined exit_status($wrk->{pid}) ? exit_status($wrk->{pid}) : 'unknown')
        . "): $text\n";
    my %result = $line =~ /(\w+)=(-?\d+)/g;
    $result{errors} = $result{status} + $result{connect} + $result{read} + $result{write} + $result{timeout};
    $result{rps} = $result{requests} / ($result{us} / 1e6);
    return \%result;
}

# Connections that this machine has opened so far.
sub _opened {
    my (undef, $values) = slurp('/proc/net/snmp') =~ /^Tcp: (.*)\nTcp: (.*)/m;
    return (split ' ', $values || '')[4] || 0;
}

# Full load on a URL for so many seconds, and the CPU time in microseconds that the
# workers spent on each request.
#   workers     their processes
#   others      the other processes that belong to the measurement
#   processors  where wrk may run
#   before      seconds of load that is not counted
sub load {
    my ($url, $seconds, %opt) = @_;
    my @ours = (@{ $opt{workers} }, @{ $opt{others} || [] });
    finish_wrk(start_wrk($url, $opt{processors}), $opt{before} || $BEFORE);

    others(@ours);
    my $opened = _opened();
    my @before = cpu_seconds(@{ $opt{workers} });
    my $began  = time;
    my $result = finish_wrk(start_wrk($url, $opt{processors}), $seconds);
    my @after  = cpu_seconds(@{ $opt{workers} });
    my $requests = $result->{requests} or die "no request to $url was answered\n";

    my ($cpu, $user, $system) = map { ($after[$_] - $before[$_]) / $requests * 1e6 } 0 .. 2;
    my $ticks = $user + $system || 1;
    $result->{cpu}    = $cpu;
    $result->{user}   = $cpu * $user / $ticks;
    $result->{system} = $cpu * $system / $ticks;
    $result->{use}    = ($after[0] - $before[0]) / (time - $began) / @{ $opt{workers} };
    # wrk opens its own.
    my $new = _opened() - $opened - $CONNECTIONS;
    $result->{opened} = $new > 0 ? $new / $requests : 0;
    $result->{taken}  = others(@ours);
    $result->{disturbed} = $result->{taken} > $OTHERS ? 1 : 0;
    return $result;
}

# Many small requests in order on one connection, some on their way at a time. Calls
# back with each response and its number; a false answer ends it. Returns how many
# requests were sent.
sub in_order {
    my ($address, $method, $paths, $seen) = @_;
    my $client = RegistryTest::Client->new($address);
    my ($sent, $got) = (0, 0);
    while ($got < @$paths) {
        my $batch = '';
        while ($sent < @$paths && $sent - $got < 64) {
            my @length = $method eq 'POST' ? (headers => { 'Content-Length' => 0 }) : ();
            $batch .= RegistryTest::Client::format_request($method, $paths->[ $sent++ ], @length);
        }
        $client->send($batch);
        while ($got < $sent) {
            my $response = $client->response;
            if (!$seen->($response, $got++)) {
                $client->close;
                return $got;
            }
        }
    }
    $client->close;
    return $got;
}

# So many POST requests a second beside another load, taking the paths in turn, over
# ten connections. side_result tells how many were sent a second and how many of them
# were not answered 200.
sub side_load {
    my ($address, $paths, $rate, $seconds, $processors) = @_;
    my $out   = scratch();
    my $lanes = 10;
    my $pid   = fork_child(sub {
        my @clients = map { RegistryTest::Client->new($address) } 1 .. $lanes;
        $_->open for @clients;
        my ($sent, $bad) = (0, 0);
        my $start = time;
        while ((my $left = $start + $seconds - time) > 0) {
            my $due = $start + $sent / $rate;
            if ((my $early = $due - time) > 0) { sleep($early < $left ? $early : $left); next }
            # What is sent here is no larger than a socket's buffer: it never blocks.
            $_->send(RegistryTest::Client::format_request('POST', $paths->[ $sent++ % @$paths ],
                headers => { 'Content-Length' => 0 })) for @clients;
            # Decoding JSON would take more of the load's processor than the module takes of its own.
            for (@clients) { $bad++ if $_->response(undecoded => 1)->{status} != 200 }
        }
        spew($out, $sent / (time - $start) . " $bad");
    });
    Bench::Cpu::pin($processors, $pid) if defined $processors;
    return { pid => $pid, out => $out, seconds => $seconds };
}

sub side_result {
    my ($side) = @_;
    wait_until(sub { !alive($side->{pid}) }, $side->{seconds} + 10);
    my ($rate, $bad) = split ' ', slurp($side->{out});
    die "the requests beside the load failed\n" unless defined $bad;
    return ($rate, $bad);
}

1;
