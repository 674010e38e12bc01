package RegistryTest::Load;

# Load from child processes: many connections each, all of one child in one loop.

use strict;
use warnings;

use Errno qw(EAGAIN EINTR);
use JSON::PP ();
use RegistryTest::Client qw(start_connect connect_error parse_url format_request);
use RegistryTest::Http;
use RegistryTest::Process qw(fork_child alive reap kill_group time_scale);
use Time::HiRes qw(time sleep);

# url: one, or an array taken in turn by the requests. Options:
#   conns      connections at once (8), over all children
#   requests   how many in all; without it the load goes on until stop
#   procs      children (1)
#   keepalive  0: a connection for each request (1)
#   method, headers, body, from, timeout (seconds for one request, 10)
#   abort_share, abort_after   close the connection of that share of the requests
#              (0 to 1) after so many seconds without waiting for the answer
#   pause      seconds that each connection rests between two requests
sub new {
    my ($class, %opt) = @_;
    my $self = bless {
        conns => 8, procs => 1, keepalive => 1, method => 'GET', abort_after => 0.02,
        timeout => $RegistryTest::Client::TIMEOUT * time_scale(), %opt,
    }, $class;
    $self->{url} = [ $self->{url} ] unless ref $self->{url};
    $self->{procs} = $self->{conns} if $self->{procs} > $self->{conns};
    return $self;
}

sub start {
    my ($self) = @_;
    for my $i (0 .. $self->{procs} - 1) {
        # The first children take what does not divide evenly.
        my %part = map {
            my $total = $self->{$_};
            defined $total
                ? ($_ => int($total / $self->{procs}) + ($i < $total % $self->{procs} ? 1 : 0)) : ();
        } qw(conns requests);
        pipe my $read, my $write or die "pipe: $!\n";
        my $pid = fork_child(
            sub { (bless { %$self, %part }, ref $self)->_run($write) }, keep => [$write]);
        close $write;
        push @{ $self->{children} }, { pid => $pid, pipe => $read, text => '' };
    }
    return $self;
}

# Waits until every child has had its first answer (or failure): from then on the
# load is really there.
sub wait_started {
    my ($self) = @_;
    for my $child (@{ $self->{children} }) {
        $self->_read_line($child) unless $child->{started}++;
    }
    return $self;
}

# Tells the children to finish the requests that they have begun, and adds up.
sub stop {
    my ($self) = @_;
    $self->wait_started;
    kill 'TERM', $_->{pid} for @{ $self->{children} };
    return $self->wait;
}

# The sums, when the requests are done:
#   requests   answered, whatever the status
#   status     { 200 => n, ... }       backend   { name from X-Backend => n }
#   errors     { why => n }            failed    the sum of errors
#   stale      requests sent again, since the server had closed the kept connection
#              at the same moment (as on every reload); each is counted once
#   aborted    as asked for            seconds, rate, slowest (seconds)
#   bodies     { status => one body of that status }, to see what an error said
sub wait {
    my ($self) = @_;
    my %sum = (
        requests => 0, status => {}, backend => {}, errors => {}, failed => 0, aborted => 0,
        stale => 0, seconds => 0, slowest => 0, bodies => {},
    );
    for my $child (@{ $self->{children} }) {
        $self->_read_line($child) unless $child->{started}++;
        my $part = JSON::PP->new->latin1->decode($self->_read_line($child));
        $sum{$_} += $part->{$_} for qw(requests failed aborted stale);
        for my $kind (qw(status backend errors)) {
            $sum{$kind}{$_} += $part->{$kind}{$_} for keys %{ $part->{$kind} };
        }
        $sum{bodies} = { %{ $part->{bodies} }, %{ $sum{bodies} } };
        for my $most (qw(seconds slowest)) {
            $sum{$most} = $part->{$most} if $part->{$most} > $sum{$most};
        }
        kill_group($child->{pid});
    }
    $self->{children} = [];
    $sum{rate} = $sum{seconds} ? $sum{requests} / $sum{seconds} : 0;
    return \%sum;
}

sub _read_line {
    my ($self, $child) = @_;
    my $line = readline $child->{pipe};
    die "a load process ended early\n" unless defined $line;
    return $line;
}

# From here on: inside a child.

sub _run {
    my ($self, $report) = @_;
    my $stop = 0;
    $SIG{TERM} = sub { $stop = 1 };
    $SIG{PIPE} = 'IGNORE';
    $report->autoflush(1);
    %$self = (
        %$self, report => $report, read_bits => '', write_bits => '', busy => {}, begun => 0,
        sum => {
            requests => 0, status => {}, backend => {}, errors => {}, failed => 0, aborted => 0,
            stale => 0, slowest => 0, bodies => {},
        },
    );
    my $start = time;
    my @idle = map { +{} } 1 .. $self->{conns};
    while (1) {
        my $more = !$stop && !(defined $self->{requests} && $self->{begun} >= $self->{requests});
        if ($more) {
            my $now = time;
            my @resting;
            while (my $slot = shift @idle) {
                if ($slot->{rest_until} && $slot->{rest_until} > $now) { push @resting, $slot; next }
                last if defined $self->{requests} && $self->{begun} >= $self->{requests};
                $self->_begin($slot);
            }
            push @idle, @resting;
        }
        last if !%{ $self->{busy} } && !$more;
        push @idle, $self->_turn;
    }
    $self->{sum}{seconds} = time - $start;
    print {$report} "started\n" unless $self->{told};    # nothing was asked for
    print {$report} JSON::PP->new->latin1->encode($self->{sum}), "\n";
    return;
}

sub _begin {
    my ($self, $slot) = @_;
    $slot->{url} = $self->{url}[ $self->{begun}++ % @{ $self->{url} } ];
    $slot->{since} = time;
    $slot->{deadline} = $slot->{since} + $self->{timeout};
    $slot->{abort_at} = $self->{abort_share} && rand() < $self->{abort_share}
        ? $slot->{since} + $self->{abort_after} : 0;
    return $self->_send($slot);
}

sub _send {
    my ($self, $slot) = @_;
    my $url = $slot->{url};
    my ($address, $path) = @{ $self->{parsed}{$url} ||= [ parse_url($url) ] };
    if ($slot->{socket} && $slot->{address} ne $address) { close delete $slot->{socket} }
    $slot->{fresh} = $slot->{new} = !$slot->{socket};
    if (!$slot->{socket}) {
        $slot->{address} = $address;
        $slot->{parser} = RegistryTest::Http->new;
        $slot->{socket} = eval { start_connect($address, $self->{from}) };
        $slot->{failed} = $@;
    }
    $slot->{parser}{head} = $self->{method} eq 'HEAD';
    $slot->{out} = $self->{formatted}{$url} ||= format_request(
        $self->{method}, $path, host => $address, headers => $self->{headers},
        body => $self->{body}, close => !$self->{keepalive});
    if ($slot->{socket}) {
        my $fd = fileno $slot->{socket};
        $slot->{fd} = $fd;
        $self->{busy}{$fd} = $slot;
        vec($self->{read_bits}, $fd, 1) = 1;
        vec($self->{write_bits}, $fd, 1) = 1;
    }
    else {
        $self->{busy}{"failed $slot"} = $slot;
    }
    return;
}

# Waits for something to happen; returns the slots that are free again.
sub _turn {
    my ($self) = @_;
    my ($now, $busy) = (time, $self->{busy});
    my $wait = 0.05;
    my @free;
    for my $key (keys %$busy) {
        my $slot = $busy->{$key};
        if (!$slot->{socket}) {
            delete $busy->{$key};
            push @free, $self->_fail($slot, $slot->{failed});
            next;
        }
        my $until = $slot->{abort_at} || $slot->{deadline};
        $wait = $until - $now if $until - $now < $wait;
    }
    return @free if @free;
    my $ready = select my $in = $self->{read_bits}, my $out = $self->{write_bits}, undef,
        $wait > 0 ? $wait : 0;
    $now = time;
    for my $fd (keys %$busy) {
        my $slot = $busy->{$fd};
        my $done = 0;
        $done = $self->_write($slot) if $ready > 0 && vec $out, $fd, 1;
        $done ||= $self->_read($slot) if $ready > 0 && vec $in, $fd, 1;
        if (!$done && $slot->{abort_at} && $slot->{abort_at} <= $now) {
            $self->{sum}{aborted}++;
            $done = $self->_release($slot, 1);
        }
        if (!$done && $slot->{deadline} <= $now) { $done = $self->_fail($slot, 'timeout') }
        next unless $done;
        if (!$self->{told}) { print { $self->{report} } "started\n"; $self->{told} = 1 }
        push @free, $slot;
    }
    return @free;
}

sub _write {
    my ($self, $slot) = @_;
    if ($slot->{fresh}) {
        my $error = connect_error($slot->{socket});
        return $self->_fail($slot, "connect: $error") if $error;
        $slot->{fresh} = 0;
    }
    my $n = syswrite $slot->{socket}, $slot->{out};
    if (!defined $n) {
        return 0 if $! == EAGAIN || $! == EINTR;
        # What the server said before it closed may still be there to read.
        vec($self->{write_bits}, $slot->{fd}, 1) = 0;
        return 0;
    }
    substr $slot->{out}, 0, $n, '';
    vec($self->{write_bits}, $slot->{fd}, 1) = 0 unless length $slot->{out};
    return 0;
}

sub _read {
    my ($self, $slot) = @_;
    my $parser = $slot->{parser};
    my $n = sysread $slot->{socket}, my $bytes, 65536;
    if (!defined $n) {
        return 0 if $! == EAGAIN || $! == EINTR;
        return $self->_fail($slot, "$!");
    }
    if ($n) { $parser->feed($bytes) }
    else    { $parser->eof }
    return $self->_fail($slot, $parser->error) if $parser->error;
    return 0 unless $parser->done;

    my $response = $parser->take;
    my ($sum, $took) = ($self->{sum}, time - $slot->{since});
    $sum->{requests}++;
    $sum->{status}{ $response->{status} }++;
    my $backend = $response->{headers}{'x-backend'};
    $sum->{backend}{$backend}++ if defined $backend;
    $sum->{bodies}{ $response->{status} } = substr $response->{body}, 0, 1000
        unless exists $sum->{bodies}{ $response->{status} };
    $sum->{slowest} = $took if $took > $sum->{slowest};
    return $self->_release($slot, !$response->{keepalive} || !$self->{keepalive});
}

sub _fail {
    my ($self, $slot, $why) = @_;
    chomp $why;
    # As every client does: a kept connection that ends without a byte was closed
    # before the server saw the request.
    if (!$slot->{new} && !$slot->{parser}->started && $why ne 'timeout') {
        $self->{sum}{stale}++;
        $self->_release($slot, 1, 1);
        $self->_send($slot);
        return 0;
    }
    $self->{sum}{failed}++;
    $self->{sum}{errors}{$why}++;
    # A server that refuses at once would keep this process spinning.
    $slot->{rest_until} = time + 0.01;
    return $self->_release($slot, 1, 1);
}

sub _release {
    my ($self, $slot, $close, $failed) = @_;
    if ($slot->{socket}) {
        delete $self->{busy}{ $slot->{fd} };
        vec($self->{read_bits}, $slot->{fd}, 1) = 0;
        vec($self->{write_bits}, $slot->{fd}, 1) = 0;
        close delete $slot->{socket} if $close;
    }
    $slot->{rest_until} = $self->{pause} ? time + $self->{pause} : 0 unless $failed;
    return $slot;
}

1;
